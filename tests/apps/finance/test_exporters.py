"""Made-up files in the layouts of the exporters that the documentation names."""

from __future__ import annotations

import numpy as np
import pytest

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import table_options
from apps.finance.types import iso_utc
from shared.errors import InvalidInputError
from tests.apps.finance.reading import read_series

EXPORTS = {
    "Yahoo, yfinance": (
        "Date,Open,High,Low,Close,Adj Close,Volume\n2024-01-30,1,3,1,2,1.9,10\n2024-01-31,2,4,2,3,2.9,20\n",
        ("Adj Close", [1.9, 2.9], "2024-01-31T00:00:00Z"),
    ),
    "yfinance with two header lines": (
        "Price,Close,High,Volume\nTicker,0700.HK,0700.HK,0700.HK\nDate,,,\n2024-01-30,2,3,10\n2024-01-31,3,4,20\n",
        ("Close", [2, 3], "2024-01-31T00:00:00Z"),
    ),
    "Nasdaq": (
        "Date,Close/Last,Volume,Open,High,Low\n01/31/2024,$3.00,20,$2,$4,$2\n01/30/2024,$2.00,10,$1,$3,$1\n",
        ("Close/Last", [2, 3], "2024-01-31T00:00:00Z"),
    ),
    "Stooq": (
        "Date,Open,High,Low,Close,Volume\n2024-01-30,1,3,1,2,10\n2024-01-31,2,4,2,3,20\n",
        ("Close", [2, 3], "2024-01-31T00:00:00Z"),
    ),
    "Stooq, ASCII data base": (
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>\n"
        "X.US,5,20240131,093000,1,3,1,2,10,0\nX.US,5,20240131,093500,2,4,2,3,20,0\n",
        ("<CLOSE>", [2, 3], "2024-01-31T09:35:00Z"),
    ),
    "Investing.com": (
        '"Date","Price","Open","High","Low","Vol.","Change %"\n'
        '"01/31/2024","3,001.50","1","3","1","1.25M","0.55%"\n"01/30/2024","2,001.50","1","3","1","850.1K","-1.2%"\n',
        ("Price", [2001.5, 3001.5], "2024-01-31T00:00:00Z"),
    ),
    "TradingView": (
        "time,open,high,low,close,Volume\n1706691600,1,3,1,2,10\n1706695200,2,4,2,3,20\n",
        ("close", [2, 3], "2024-01-31T10:00:00Z"),
    ),
    "MetaTrader 5": (
        "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>\n"
        "2024.01.31\t09:30:00\t1\t3\t1\t2\t10\t0\t1\n2024.01.31\t09:35:00\t2\t4\t2\t3\t20\t0\t1\n",
        ("<CLOSE>", [2, 3], "2024-01-31T09:35:00Z"),
    ),
    "Binance klines": (
        "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,"
        "ignore\n1706691600000,1,3,1,2,10,1706695199999,5,6,7,8,0\n1706695200000,2,4,2,3,20,1706698799999,5,6,7,8,0\n",
        ("close", [2, 3], "2024-01-31T10:00:00Z"),
    ),
    "NAB": (
        "timestamp,value\n2024-01-31 09:30:00,2\n2024-01-31 09:35:00,3\n",
        ("value", [2, 3], "2024-01-31T09:35:00Z"),
    ),
    "NautilusTrader": (
        "timestamp,open,high,low,close\n2024-01-31 09:30:00+00:00,1,3,1,2\n2024-01-31 09:35:00+00:00,2,4,2,3\n",
        ("close", [2, 3], "2024-01-31T09:35:00Z"),
    ),
    "pandas, a Series with an index without a name": (
        ",0\n2024-01-30,2\n2024-01-31,3\n",
        ("0", [2, 3], "2024-01-31T00:00:00Z"),
    ),
    "a German Excel": (
        "Datum;Schlusskurs\n30.01.2024;1.002,50\n31.01.2024;1.003,50\n",
        ("Schlusskurs", [1002.5, 1003.5], "2024-01-31T00:00:00Z"),
    ),
}


KLINES = "1706691600000,1,3,1,2,10,1706695199999,5,6,7,8,0\n1706695200000,2,4,2,3,20,1706698799999,5,6,7,8,0\n"
"""Binance's spot market files, which have no header."""
LATER = {
    "Yahoo, the site's own, with a dividend's row of nulls": (
        "Date,Open,High,Low,Close,Adj Close,Volume\n2024-01-29,1,3,1,2,1.8,10\n"
        "2024-01-30,null,null,null,null,null,null\n2024-01-31,2,4,2,3,2.9,20\n",
        ("Adj Close", [1.8, None, 2.9], "2024-01-31T00:00:00Z"),
    ),
    "Alpha Vantage": (
        "timestamp,open,high,low,close,adjusted_close,volume,dividend_amount\n"
        "2024-01-31,2,4,2,3,2.9,20,0\n2024-01-30,1,3,1,2,1.9,10,0\n",
        ("adjusted_close", [1.9, 2.9], "2024-01-31T00:00:00Z"),
    ),
    "Bloomberg, a sheet of BDH": (
        "Security,SPX Index\nStart Date,01/30/2024\nEnd Date,01/31/2024\nPeriod,D\nCurrency,USD\n\n"
        "Date,PX_LAST,PX_VOLUME\n" + "".join(f"01/{day}/2024,{4900 + day}.5,#N/A N/A\n" for day in range(20, 32)),
        ("PX_LAST", [4900.5 + day for day in range(20, 32)], "2024-01-31T00:00:00Z"),
    ),
    "a German Excel with the time of day": (
        "Datum;Uhrzeit;Eröffnung;Hoch;Tief;Schluss\n31.01.2024;09:00;1,0;3,5;1,0;1.002,50\n"
        "31.01.2024;09:05;1,0;3,5;1,0;1.003,50\n",
        ("Schluss", [1002.5, 1003.5], "2024-01-31T09:05:00Z"),
    ),
    "German bars": (
        "Datum;Erster;Hoch;Tief;Schlusskurs;Stuecke;Volumen\n2024-01-30;1,5;3,0;1,0;2,25;12.345;1.234.567\n"
        "2024-01-31;1,5;3,0;1,0;3,25;12.345;1.234.567\n",
        ("Schlusskurs", [2.25, 3.25], "2024-01-31T00:00:00Z"),
    ),
    "Stooq, in Polish": (
        "Data,Otwarcie,Najwyzszy,Najnizszy,Zamkniecie,Wolumen\n2024-01-30,1,3,1,2,10\n2024-01-31,2,4,2,3,20\n",
        ("Zamkniecie", [2, 3], "2024-01-31T00:00:00Z"),
    ),
    "Binance klines without a header": (KLINES, ("close", [2, 3], "2024-01-31T10:00:00Z")),
    "Binance klines without a header, by number": (
        KLINES,
        ("5", [2, 3], "2024-01-31T10:00:00Z"),
        {"time": "1", "value": "5"},
    ),
    "Binance klines of 2025, in microseconds": (
        "1738315800000000,1,3,1,2,10,1738315859999999,5,6,7,8,0\n1738315860000000,2,4,2,3,20,1738315919999999,5,6,7,8,0\n",
        ("close", [2, 3], "2025-01-31T09:31:00Z"),
    ),
    "Binance aggregate trades without a header": (
        "100,2.50,0.01,1,1,1706691600000,True,True\n101,3.50,0.02,2,2,1706691600137,False,True\n",
        ("price", [2.5, 3.5], "2024-01-31T09:00:00.137Z"),
    ),
    "Binance trades without a header": (
        "100,2.50,0.01,0.025,1706691600000,True,True\n101,3.50,0.02,0.07,1706691600137,False,True\n",
        ("price", [2.5, 3.5], "2024-01-31T09:00:00.137Z"),
    ),
    "Interactive Brokers, bars as ib_insync writes them": (
        ",date,open,high,low,close,volume,average,barCount\n"
        "0,2024-01-31 09:30:00-05:00,1,3,1,2,10,2,5\n1,2024-01-31 09:31:00-05:00,2,4,2,3,20,3,5\n",
        ("close", [2, 3], "2024-01-31T14:31:00Z"),
    ),
    "Interactive Brokers, bars of the API": (
        "date,open,high,low,close,volume,average,barCount\n"
        "20240131  09:30:00,1,3,1,2,10,2,5\n20240131  09:31:00,2,4,2,3,20,3,5\n",
        ("close", [2, 3], "2024-01-31T14:31:00Z"),
        {"zone": "America/New_York"},
    ),
    "Interactive Brokers, bars of the API with their zone": (
        "date,open,high,low,close,volume\n20240131 09:30:00 US/Eastern,1,3,1,2,10\n"
        "20240131 09:31:00 US/Eastern,2,4,2,3,9\n",
        ("close", [2, 3], "2024-01-31T14:31:00Z"),
    ),
    "Interactive Brokers, a Flex query": (
        '"Symbol","Date/Time","TradePrice"\n"AAPL","20240131;093000","2"\n"AAPL","20240131;093100","3"\n',
        ("TradePrice", [2, 3], "2024-01-31T09:31:00Z"),
    ),
    "Binance trades": (
        "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
        "1,2.5,10,1,1,1706691600000,true\n2,3.5,20,2,2,1706695200000,false\n",
        ("price", [2.5, 3.5], "2024-01-31T10:00:00Z"),
    ),
    "MetaTrader 4": (
        "2024.01.31,09:30,1,3,1,2,10\n2024.01.31,09:35,2,4,2,3,20\n",
        ("6", [2, 3], "2024-01-31T09:35:00Z"),
        {"time": "1+2", "value": "6"},
    ),
    "MetaTrader 5, ticks": (
        "<DATE>\t<TIME>\t<BID>\t<ASK>\t<LAST>\t<VOLUME>\t<FLAGS>\n"
        "2024.01.31\t09:30:00.123\t1.5\t2.5\t\t\t6\n2024.01.31\t09:30:01.5\t2.5\t3.5\t\t\t6\n",
        ("mid", [2, 3], "2024-01-31T09:30:01.5Z"),
    ),
    "Refinitiv Tick History": (
        "#RIC,Domain,Date-Time,GMT Offset,Type,Price,Volume,Bid Price,Ask Price,Qualifiers\n"
        "IBM.N,Market Price,2024-01-31T14:30:00.000000001Z,-5,Trade,2,100,,,[GEN]\n"
        "IBM.N,Market Price,2024-01-31T14:30:00.000000001Z,-5,Quote,,,1,3,\n"
        "IBM.N,Market Price,2024-01-31T14:30:00.5Z,-5,Trade,3,100,,,[GEN]\n",
        ("Price", [2, 3], "2024-01-31T14:30:00.5Z"),
    ),
    "Kraken OHLCVT": (
        "1706691600,1,3,1,2,10,3\n1706695200,2,4,2,3,20,3\n",
        ("5", [2, 3], "2024-01-31T10:00:00Z"),
        {"time": "1", "value": "5"},
    ),
    "Kraken, trades": (
        '"txid","ordertxid","pair","time","type","ordertype","price","cost","vol","margin","misc"\n'
        '"T1","O1","XXBTZUSD","2024-01-31 09:30:00.1234","buy","limit",2.10000,1.0,0.1,0.0,""\n'
        '"T2","O2","XXBTZUSD","2024-01-31 09:30:01.5","sell","limit",3.10000,1.0,0.1,0.0,""\n',
        ("price", [2.1, 3.1], "2024-01-31T09:30:01.5Z"),
    ),
    "Deutsche Bundesbank": (
        '"";BBEX3.D.USD.EUR.BB.AC.000;BBEX3.D.USD.EUR.BB.AC.000_FLAGS\n"";"Euro-Referenzkurs / 1 EUR = ... USD";\n'
        "unit;USD (US-Dollar);\nunit multiplier;one;\nlast update;2024-02-01 15:49:32;\n"
        + "".join(f"2024-01-{day};{f'1,08{day}' if day != 28 else '.'};\n" for day in range(26, 32)),
        ("BBEX3.D.USD.EUR.BB.AC.000", [1.0826, 1.0827, None, 1.0829, 1.0830, 1.0831], "2024-01-31T00:00:00Z"),
    ),
    "ECB, SDMX-CSV": (
        "KEY,FREQ,CURRENCY,TIME_PERIOD,OBS_VALUE,OBS_STATUS,OBS_COM,DECIMALS,TITLE\n"
        'EXR.D.USD,D,USD,2024-01-30,1.0846,A,,4,"US dollar, Euro"\n'
        'EXR.D.USD,D,USD,2024-01-31,1.0837,A,,4,"US dollar, Euro"\n',
        ("OBS_VALUE", [1.0846, 1.0837], "2024-01-31T00:00:00Z"),
    ),
    "CoinGecko": (
        "snapped_at,price,market_cap,total_volume\n2024-01-30 00:00:00 UTC,2.5,1,0\n2024-01-31 00:00:00 UTC,3.5,1,0\n",
        ("price", [2.5, 3.5], "2024-01-31T00:00:00Z"),
    ),
    "FRED": (
        "observation_date,DGS10\n2024-01-29,4.08\n2024-01-30,\n2024-01-31,3.99\n",
        ("DGS10", [4.08, None, 3.99], "2024-01-31T00:00:00Z"),
    ),
    "QuantConnect, history of the research environment": (
        "symbol,time,close,high,low,open,volume\nSPY R735QTJ8XC9X,2024-01-31 09:30:00,2,3,1,1,10\n"
        "SPY R735QTJ8XC9X,2024-01-31 09:31:00,3,4,2,2,20\n",
        ("close", [2, 3], "2024-01-31T09:31:00Z"),
    ),
    "QuantConnect, LEAN's daily bars": (
        "20240130 00:00,1682200,1689700,1662500,1683000,10\n20240131 00:00,1682200,1689700,1662500,1684000,20\n",
        ("5", [1683000, 1684000], "2024-01-31T00:00:00Z"),
        {"time": "1", "value": "5"},
    ),
    "Dukascopy, local time": (
        "Local time,Open,High,Low,Close,Volume\n30.01.2024 00:00:00.000 GMT+0100,1,3,1,2,10\n"
        "31.01.2024 00:00:00.000 GMT+0100,2,4,2,3,20\n",
        ("Close", [2, 3], "2024-01-30T23:00:00Z"),
    ),
    "HistData": (
        "20240131 093000;1.1;1.2;1.0;1.5;0\n20240131 093100;1.1;1.2;1.0;1.25;0\n",
        ("5", [1.5, 1.25], "2024-01-31T09:31:00Z"),
        {"time": "1", "value": "5"},
    ),
    "Bloomberg, a table of historical prices saved by Excel in the United States": (
        "SPX Index,,,\nDate,Last Px,Volume,SMAVG (15)\n1/31/24,4905.5,12,4902.1\n1/30/24,4901.5,11,\n",
        ("Last Px", [4901.5, 4905.5], "2024-01-31T00:00:00Z"),
    ),
    "The Wall Street Journal": (
        "Date, Open, High, Low, Close, Volume\n01/31/24, 2, 4, 2, 3, 20\n01/04/24, 1, 3, 1, 2, 10\n",
        ("Close", [2, 3], "2024-01-31T00:00:00Z"),
    ),
    "LSEG (Refinitiv), get_history": (
        "Date,TRDPRC_1,HIGH_1,LOW_1,ACVOL_UNS,OPEN_PRC,BID,ASK,VWAP\n"
        "2024-01-30,2,3,1,10,1,1.5,2.7,2\n2024-01-31,3,4,2,20,2,2.5,3.7,3\n",
        ("TRDPRC_1", [2, 3], "2024-01-31T00:00:00Z"),
    ),
    "ECB, weekly series": (
        "KEY,FREQ,TIME_PERIOD,OBS_VALUE\nILM.W.X,W,2020-W53,1.5\nILM.W.X,W,2021-W01,2.5\nILM.W.X,W,2021-W02,3.5\n",
        ("OBS_VALUE", [1.5, 2.5, 3.5], "2021-01-11T00:00:00Z"),
    ),
    "Binance klines of 2024 and 2025 below each other, in milliseconds and microseconds": (
        "1735689540000,1,3,1,2,10,1735689599999,5,6,7,8,0\n1735689600000000,1,3,1,3,10,1735689659999999,5,6,7,8,0\n",
        ("close", [2, 3], "2025-01-01T00:00:00Z"),
    ),
    "Binance best bids and offers": (
        "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time\n"
        "1,1.5,5,2.5,6,1706691600000,1706691600005\n2,2.5,5,3.5,6,1706691600137,1706691600139\n",
        ("mid", [2, 3], "2024-01-31T09:00:00.137Z"),
    ),
    "CRSP, with a day without a trade and one without bid and ask": (
        "PERMNO,date,TICKER,PRC,VOL,RET\n10107,2024-01-29,MSFT,2,10,0.1\n10107,2024-01-30,MSFT,-2.5,0,0.1\n"
        "10107,2024-01-31,MSFT,0,0,\n10107,2024-02-01,MSFT,3,10,0.1\n",
        ("PRC", [2, 2.5, None, 3], "2024-02-01T00:00:00Z"),
    ),
    "CRSP's daily file in its newer layout, with a day without a trade": (
        "PERMNO,HdrCUSIP,Ticker,SICCD,DlyCalDt,DlyPrc,DlyPrcFlg,DlyPrevDt,DlyRet,DlyVol,DlyClose,DlyBid,DlyAsk\n"
        "10107,59491810,MSFT,7370,2024-01-30,2.5,BA,2024-01-29,0.1,0,,2,3\n"
        "10107,59491810,MSFT,7370,2024-01-31,3,TR,2024-01-30,0.1,10,3,2,3\n",
        ("DlyPrc", [2.5, 3], "2024-01-31T00:00:00Z"),
    ),
    "CRSP's monthly file in its newer layout, with the names in lower case as in its database": (
        "permno,hdrcusip,mthcaldt,mthprc,mthprcflg,mthret,mthvol\n"
        "10107,59491810,2024-01-31,2,TR,0.1,10\n10107,59491810,2024-02-29,3,TR,0.1,20\n",
        ("mthprc", [2, 3], "2024-02-29T00:00:00Z"),
    ),
    "CryptoDataDownload": (
        "https://www.CryptoDataDownload.com\nunix,date,symbol,open,high,low,close,Volume BTC\n"
        "1706695200,2024-01-31 10:00:00,BTC/USD,2,4,2,3,20\n1706691600,2024-01-31 09:00:00,BTC/USD,1,3,1,2,10\n",
        ("close", [2, 3], "2024-01-31T10:00:00Z"),
    ),
}


@pytest.mark.parametrize("exporter", LATER)
def test_exporters_in_the_documentation_are_read(tmp_path, exporter):
    text, (column, values, last), *options = LATER[exporter]
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    (series,) = read_contents(tmp_path / "a.csv", table_options(*options or [{}])).series
    assert series.column == column
    np.testing.assert_array_equal(series.target, np.array(values, float))
    assert iso_utc(int(series.times_ns[-1])) == last


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("1706691600,1,3,1,2,10,3\n1706695200,2,4,2,3,20,3\n", {}, "no header line that names.*time=1 and value=5"),
        (
            "date,close\n20240131 09:30:00 US/Eastern,2\n20240131 16:30:00 Europe/Berlin,3\n",
            {},
            "line 3: '20240131 16:30:00 Europe/Berlin' is not in US/Eastern",
        ),
        ("34200000,1,2,1,2\n34260000,1,2,1,3\n", {"time": "1", "value": "5"}, "may be seconds, days or a count"),
        ("DATE;CLOSE\n01/02/2024;1,5\n02/02/2024;2,5\n", {}, "is ambiguous.*unit=day-first"),
        ("date,close\n45321,2\n45322,3\n", {}, "give the option unit"),
    ],
)
def test_ambiguous_exports_are_refused_naming_the_option_to_give(tmp_path, text, options, sentence):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InvalidInputError, match=sentence):
        read_contents(tmp_path / "a.csv", table_options(options))


@pytest.mark.parametrize("exporter", EXPORTS)
def test_named_exporters_need_no_option(tmp_path, exporter):
    text, (column, values, last) = EXPORTS[exporter]
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    (series,) = read_contents(tmp_path / "a.csv").series
    assert (series.column, series.target.tolist()) == (column, values)
    assert iso_utc(int(series.times_ns[-1])) == last


def test_investings_volumes_and_changes_are_numbers(tmp_path):
    (tmp_path / "a.csv").write_text(EXPORTS["Investing.com"][0])
    (series,) = read_contents(tmp_path / "a.csv").series
    assert series.values["Vol."].tolist() == [850_100, 1_250_000]
    assert series.values["Change %"].tolist() == [-1.2, 0.55]


def test_excels_days_need_their_unit(tmp_path):
    (tmp_path / "a.csv").write_text("date,close\n45321,2\n45322,3\n")
    (series,) = read_contents(tmp_path / "a.csv", table_options({"unit": "excel"})).series
    assert iso_utc(int(series.times_ns[-1])) == "2024-01-31T00:00:00Z"


DAYS = [f"2024-01-{day:02d}" for day in range(1, 31)]


def test_securities_side_by_side_with_the_same_dates_are_columns(tmp_path):
    rows = [f"{day},{n},{day},{100 + n}" for n, day in enumerate(DAYS)]
    (tmp_path / "a.csv").write_text("\n".join(["Date,PX_LAST,Date,PX_LAST", *rows]) + "\n")
    assert sorted(read_series(tmp_path / "a.csv").values) == ["PX_LAST", "PX_LAST (2)"]


@pytest.mark.parametrize(
    ("above", "names"),
    [
        (["SPX Index,,,,NDX Index,"], ["SPX Index", "NDX Index"]),
        (["Security,SPX Index,,,Security,NDX Index", "Period,D,,,Period,D"], ["SPX Index", "NDX Index"]),
        ([], ["PX_LAST", "PX_LAST (2)"]),
    ],
)  # fmt: skip
def test_securities_of_bloomberg_side_by_side_are_series_each_with_its_own_dates(tmp_path, above, names):
    """The second security has one more holiday, so it ends sooner and its rows are shifted against the first."""
    second = [(day, 100 + n) for n, day in enumerate(DAYS) if n != 4]
    rows = [
        f"{day},{n}.5,#N/A N/A,,{','.join(map(str, second[n])) if n < len(second) else ','}"
        for n, day in enumerate(DAYS)
    ]
    (tmp_path / "a.csv").write_text("\n".join([*above, "Date,PX_LAST,PX_VOLUME,,Date,PX_LAST", *rows]) + "\n")
    contents = read_contents(tmp_path / "a.csv")
    first_series, second_series = contents.series
    assert [first_series.name, second_series.name] == names and contents.series_column == "security"
    assert (first_series.target.tolist(), first_series.column) == ([n + 0.5 for n in range(30)], "PX_LAST")
    assert second_series.target.tolist() == [value for _, value in second]
    assert [iso_utc(int(time))[:10] for time in second_series.times_ns] == [day for day, _ in second]
    assert (
        "the file has 2 securities side by side, each with its own dates; they were read separately" in contents.notes
    )


def test_a_wrong_date_of_the_second_security_is_refused_with_its_line_number(tmp_path):
    rows = [f"{day},{n},{day.replace('-01-', '-02-')},{n}" for n, day in enumerate(DAYS[:20])]
    rows[7] = "2024-01-08,7,soon,7"
    (tmp_path / "a.csv").write_text("\n".join(["A,,B,", "Date,PX_LAST,Date,PX_LAST", *rows]) + "\n")
    with pytest.raises(InvalidInputError, match=r"line 10: 'soon' is not a time"):
        read_contents(tmp_path / "a.csv")


@pytest.mark.parametrize("above", [",SPX Index,,NDX Index,", ",SPX Index,SPX Index,NDX Index,NDX Index"])
def test_columns_below_a_security_name_are_named_after_both(tmp_path, above):
    rows = [f"{day},{n},5,{100 + n},#N/A N/A" for n, day in enumerate(DAYS)]
    (tmp_path / "a.csv").write_text("\n".join([above, "Dates,PX_LAST,PX_VOLUME,PX_LAST,PX_VOLUME", *rows]) + "\n")
    series = read_series(tmp_path / "a.csv")
    assert list(series.values) == ["SPX Index PX_LAST", "SPX Index PX_VOLUME", "NDX Index PX_LAST"]
