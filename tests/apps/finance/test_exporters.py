"""Made-up files in the layouts of the exporters that the documentation names."""

from __future__ import annotations

import pytest

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import table_options
from apps.finance.types import iso_utc

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
