"""Which column is scored, and which columns identify several series in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import TableOptions
from shared.errors import InvalidInputError
from tests.apps.finance.reading import read_series

DAYS = [f"2024-01-{day:02d}" for day in range(1, 31)]


def written(folder: Path, header: str, rows: list[str]) -> Path:
    path = folder / "series.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("header", "scored"),
    [
        ("Date,Close/Last,Volume,Open,High,Low", "Close/Last"),
        ("date,value,close", "close"),
        ("Date,Open,High,Low,Close,Adj Close,Volume", "Adj Close"),
        ("date,close,adjusted_close", "adjusted_close"),
        ("date,close,adjClose", "adjClose"),
        ("date,id,amount", "amount"),
        ("date,Unnamed: 0,reading", "reading"),
        ("date,trade_id,Price (USD)", "Price (USD)"),
        ("date,previous close,open price,BTC close", "BTC close"),
        ("open_time,open,close_price,close_time", "close_price"),
        ("date,Volume,Last Price", "Last Price"),
        ("date,volume,amount", "amount"),
        ("日期,代码,昨收,收盘价(元)", "收盘价(元)"),
        ("date,No.,exchange rate", "exchange rate"),
        ("date,index,first,second", "first"),
        ("Date,Clôture,Volume", "Clôture"),
        ("date,something,count", "something"),
        ("date,id,count", "count"),
        ("timestamp,bid,ask,last_updated", "mid"),
        ("time,bid_size,bid_px,ask_size,ask_px", "mid"),
        ("Valuation Date,NAV Date,NAV per Share", "NAV per Share"),
        ("time,LastQty,LastPx", "LastPx"),
        ("time,last trade time,Last Px Source Id,reading", "reading"),
        ("Date,Price Chg,Px", "Px"),
        ("Date,Price Chg%,Price/Earnings,PX_LAST", "PX_LAST"),
        ("Date,Chg,Shares,reading", "reading"),
        ("Date,Tenor,Yield", "Yield"),
        ("Date,Maturity,Yield to maturity", "Yield to maturity"),
        ("Date,Open,High,Low,Close*,Volume", "Close*"),
        ("Date,Open,High,Low,Close*,Adj Close**,Volume", "Adj Close**"),
    ],
)
def test_the_value_is_found_by_name_and_identifiers_are_never_scored(tmp_path, header, scored):
    width = header.count(",")
    rows = [
        ",".join([day, *(str(100 + row + 7 * column + row % 3) for column in range(width))])
        for row, day in enumerate(DAYS)
    ]
    rows = [row if "close_time" not in header else row.rsplit(",", 1)[0] + ",1704110400" for row in rows]
    assert read_series(written(tmp_path, header, rows)).column == scored


def test_the_exchanges_export_with_dollars_and_the_newest_row_first(tmp_path):
    rows = [
        "01/31/2024,$184.40,55467800,$187.04,$187.10,$184.35",
        "01/30/2024,$188.04,55859370,$190.94,$191.80,$187.47",
    ]
    series = read_series(written(tmp_path, "Date,Close/Last,Volume,Open,High,Low", rows))
    assert series.column == "Close/Last" and series.target.tolist() == [188.04, 184.40]
    scored = "column 'Close/Last' was scored, one of several columns of numbers; the option 'value' selects another"
    assert series.notes[0] == scored
    assert any("sorted" in note for note in series.notes)


def test_the_mean_of_bid_and_ask_is_scored_if_there_is_no_price(tmp_path):
    rows = [f"{day},{row},{100 + row % 5},{101 + row % 5}" for row, day in enumerate(DAYS)]
    for header in ("timestamp,index,bid,ask", "timestamp,index,Bid Price,Offer"):
        series = read_series(written(tmp_path, header, rows))
        assert series.column == "mid" and series.target[:3].tolist() == [100.5, 101.5, 102.5]
        assert "column 'mid' was scored" in series.notes[0] and "mean of 'b" in series.notes[0].lower()
    assert read_series(written(tmp_path, "timestamp,last,bid,ask", rows)).column == "last"
    assert read_series(written(tmp_path, "timestamp,index,bid,ask", rows), TableOptions(value="bid")).column == "bid"


def test_an_identifier_column_is_scored_only_on_request(tmp_path):
    path = written(tmp_path, "date,id,word", [f"{day},{row},x" for row, day in enumerate(DAYS)])
    with pytest.raises(InvalidInputError, match=r"'id' identifies rows and is not a value.*option 'value'"):
        read_series(path)
    assert read_series(path, TableOptions(value="id")).target[3] == 3


@pytest.mark.parametrize("label", ["代码", "ticker", "stock_code", "证券代码", "code"])
@pytest.mark.parametrize("tickers", [("0700", "0005"), ("600519", "000001"), ("1E5", "2E5"), ("NA", "AAPL")])
def test_series_below_each_other_are_kept_apart_with_their_names_as_written(tmp_path, label, tickers):
    rows = [
        f"{day},{ticker},{place * 100 + row}" for row, day in enumerate(DAYS) for place, ticker in enumerate(tickers)
    ]
    path = written(tmp_path, f"date,{label},close", rows)
    contents = read_contents(path)
    assert [series.name for series in contents.series] == list(tickers) and contents.series_column == label
    for number, series in enumerate(contents.series):
        assert series.target.tolist() == [number * 100 + row for row in range(len(DAYS))]
        assert list(series.values) == ["close"]
    assert contents.notes[0].startswith("the file holds 2 series, identified by column")


def test_series_one_after_the_other_without_a_common_time_are_kept_apart_too(tmp_path):
    rows = [f"{day},{'A' if row < 15 else 'B'},{row}" for row, day in enumerate(DAYS)]
    contents = read_contents(written(tmp_path, "date,symbol,close", rows))
    assert [(series.name, len(series)) for series in contents.series] == [("A", 15), ("B", 15)]


def test_series_under_another_name_are_refused_until_the_option_series_names_it(tmp_path):
    rows = [f"{day},{desk},{row * desk}" for row, day in enumerate(DAYS) for desk in (7, 12)]
    path = written(tmp_path, "date,desk,x", rows)
    with pytest.raises(InvalidInputError, match=r"the 60 rows cover only 30 days.*the option 'series'"):
        read_contents(path)
    assert [series.name for series in read_contents(path, TableOptions(series="desk")).series] == ["7", "12"]
    rows = [f"{day},{x},{c},{row}" for row, day in enumerate(DAYS) for x in ("SH", "SZ") for c in ("000001", "000002")]
    path = written(tmp_path, "date,exchange,code,close", rows)
    with pytest.raises(
        InvalidInputError, match=r"differ in column 'exchange' \('SH', 'SZ'\).*give series=code\+exchange,"
    ):
        read_contents(path)
    found = read_contents(path, TableOptions(series="code+exchange"))
    assert [series.name for series in found.series] == ["000001+SH", "000002+SH", "000001+SZ", "000002+SZ"]
    assert found.series_column == "code+exchange" and [len(series) for series in found.series] == [30] * 4
    assert [series.column for series in found.series] == ["close"] * 4
    assert all(list(series.values) == ["close"] for series in found.series)


def test_series_named_by_several_columns_are_never_merged(tmp_path):
    """Numeric parts of a name are no values; a column may itself have a plus; equal joined names are refused."""
    rows = [f"{day} 09:30,{store},{item},{row}.5" for row, day in enumerate(DAYS) for store in (1, 2) for item in "ab"]
    path = written(tmp_path, "time,store,item,sold", rows)
    found = read_contents(path, TableOptions(series="store+item", value="sold"))
    assert [series.name for series in found.series] == ["1+a", "1+b", "2+a", "2+b"]
    assert all(list(series.values) == ["sold"] for series in found.series)
    with pytest.raises(
        InvalidInputError, match=r"has no column 'store\+shop', named by 'series', and none named 'shop'; "
    ):
        read_contents(path, TableOptions(series="store+shop"))
    with pytest.raises(InvalidInputError, match=r"its columns are: 'time', 'store', 'item', 'sold'$"):
        read_contents(path, TableOptions(series="shop", value="sold", covariates=("store", "item")))
    own = written(tmp_path, "time,store+item,sold", [f"{day},{name},1" for day in DAYS for name in ("x", "y")])
    assert [series.name for series in read_contents(own, TableOptions(series="store+item")).series] == ["x", "y"]
    rows = [f"{day},{a},{b},{row}" for row, day in enumerate(DAYS) for a, b in (("a+b", "c"), ("a", "b+c"))]
    with pytest.raises(InvalidInputError, match=r"'left' and 'right' give different series the same name"):
        read_contents(written(tmp_path, "time,left,right,sold", rows), TableOptions(series="left+right"))


@pytest.mark.parametrize("label", ["PERMNO", "security_id", "instrument_id", "gvkey", "secid"])
def test_series_named_by_a_number_column_are_kept_apart(tmp_path, label):
    rows = [f"{day} 09:30,{number},{row * number}" for row, day in enumerate(DAYS, 1) for number in (101, 204)]
    contents = read_contents(written(tmp_path, f"date,{label},PRC", rows))
    assert [series.name for series in contents.series] == ["101", "204"]
    assert [series.column for series in contents.series] == ["PRC", "PRC"]
    assert contents.series[1].target.tolist() == [204 * row for row in range(1, 31)]


@pytest.mark.parametrize("label", ["id", "desk_id", "account", "strike", "expiry", "Tenor"])
def test_rows_distinguished_by_a_number_column_need_the_option_series(tmp_path, label):
    cell = "{}M" if label == "Tenor" else "{}"
    rows = [f"{day} 09:30,{cell.format(number)},{row}" for row, day in enumerate(DAYS) for number in (3, 6)]
    path = written(tmp_path, f"date,{label},PRC", rows)
    with pytest.raises(InvalidInputError, match=rf"the same time differ in column '{label}' .*the option 'series'"):
        read_contents(path)
    assert len(read_contents(path, TableOptions(series=label)).series) == 2


def test_an_option_chain_is_refused_with_all_columns_that_identify_the_contract(tmp_path):
    rows = [
        f"{day} 09:30,{strike},{expiry},{right},{row}.5"
        for row, day in enumerate(DAYS)
        for strike in (100, 110)
        for expiry in ("2024-03-15", "2024-06-21")
        for right in "CP"
    ]
    with pytest.raises(InvalidInputError, match="differ in column 'expiry' and 'right' and 'strike'"):
        read_contents(written(tmp_path, "time,strike,expiry,right,price", rows))


def test_the_tickers_of_parquet(tmp_path):
    frame = pl.DataFrame(
        {
            "date": pl.Series(DAYS * 2).str.to_date(),
            "permno": [10107] * 30 + [14593] * 30,
            "close": pl.Series([str(row) + ".25" for row in range(60)]).cast(pl.Decimal(12, 2)),
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    contents = read_contents(tmp_path / "a.parquet")
    assert [series.name for series in contents.series] == ["10107", "14593"]
    assert contents.series[1].target[0] == 30.25
    frame = pl.DataFrame(
        {"t": pl.Series(DAYS).cast(pl.Categorical), "s": pl.Series(["A"] * 30).cast(pl.Categorical), "v": range(30)}
    )
    frame.write_parquet(tmp_path / "b.parquet")
    assert read_series(tmp_path / "b.parquet").target.tolist() == list(range(30))


def test_a_column_with_one_ticker_is_neither_the_value_nor_the_series_names(tmp_path):
    series = read_series(
        written(tmp_path, "日期,股票代码,成交额", [f"{day},600519,{row % 7}" for row, day in enumerate(DAYS)])
    )
    assert series.column == "成交额" and list(series.values) == ["成交额"] and series.name == "series.csv"


def test_trades_of_both_sides_at_the_same_time_are_one_series(tmp_path):
    rows = [f"{day} 09:30,{side},{row}" for row, day in enumerate(DAYS) for side in ("BUY", "SELL")]
    series = read_series(written(tmp_path, "time,side,price", rows))
    assert len(series) == 30 and "30 rows had the same time as another" in series.notes[-1]


def test_unsorted_series_are_sorted_and_counted_in_a_note(tmp_path):
    rows = [f"{day},{ticker},{row}" for ticker in "AB" for row, day in reversed(list(enumerate(DAYS)))]
    contents = read_contents(written(tmp_path, "date,ticker,close", rows))
    assert contents.series[0].target[0] == 0
    assert "2 of the 2 series were not in time order and have been sorted" in contents.notes
    assert np.isfinite(contents.series[1].target).all()


def test_a_number_column_named_like_an_identifier_is_a_value(tmp_path):
    rows = [f"{day},{100 + row % 3}" for row, day in enumerate(DAYS)]
    series = read_series(written(tmp_path, "date,stock", rows), TableOptions(value="stock"))
    assert len(series) == 30 and series.column == "stock"
    rows = [f"{day},{1000.5 + row % 3},{row}.5" for row, day in enumerate(DAYS)]
    assert len(read_series(written(tmp_path, "date,account,close", rows))) == 30


def test_several_amounts_per_day_are_refused_if_most_would_be_lost(tmp_path):
    rows = [f"{day},{row * part}" for row, day in enumerate(DAYS) for part in (3, 5, 7)]
    with pytest.raises(InvalidInputError, match="the 90 rows cover only 30 days; sum or average them"):
        read_series(written(tmp_path, "date,amount", rows))
    ticks = [f"{day} 09:30:00,{row * part}" for row, day in enumerate(DAYS) for part in (3, 5, 7)]
    assert "60 rows had the same time as another" in read_series(written(tmp_path, "time,price", ticks)).notes[0]


def test_trades_at_several_exchanges_are_one_series_and_closes_of_several_need_the_option_series(tmp_path):
    seconds = (0, 0, 0, 1, 2)
    ticks = [f"{day} 09:30:0{seconds[row]},{row},{'NQ'[row % 2]}" for day in DAYS for row in range(5)]
    series = read_series(written(tmp_path, "time,price,exchange", ticks))
    assert len(series) == 90 and "60 rows had the same time as another" in series.notes[-1]
    closes = [f"{day},{name},{row}" for row, day in enumerate(DAYS) for name in ("Binance", "Kraken")]
    path = written(tmp_path, "date,exchange,close", closes)
    with pytest.raises(InvalidInputError, match=r"differ in column 'exchange'.*give it as the option 'series'"):
        read_contents(path)
    found = read_contents(path, TableOptions(series="exchange"))
    assert [series.name for series in found.series] == ["Binance", "Kraken"]


@pytest.mark.parametrize(
    "cell",
    [
        "(USD {}.76)",
        "USD {},000.50",
        "{}.50 USD",
        "$ {}.50",
        "R$ {}.5",
        "\u2212{}.5",
        "{}bp",
        "{} Mrd",
    ],
)
def test_columns_of_formatted_amounts_are_left_out_with_a_note(tmp_path, cell):
    rows = [f'2024-01-{day:02d};"{cell.format(340 + day)}";{day}' for day in range(1, 30)]
    path = written(tmp_path, "Date;PnL;Delta", rows)
    contents = read_contents(path)
    assert list(contents.series[0].values) == ["Delta"]
    fault = f"holds {cell.format(341)!r}, which is not a number as written"
    assert f"column 'PnL' was left out: it {fault}" in contents.notes
    path = written(tmp_path, "Date;PnL;Trades", rows)
    for options in (TableOptions(), TableOptions(value="PnL")):
        with pytest.raises(InvalidInputError) as raised:
            read_contents(path, options)
        assert f"column 'PnL' {fault}; correct the file" in str(raised.value)
    assert read_contents(path, TableOptions(value="Trades")).series[0].target[0] == 1


def test_a_text_column_is_left_out_without_a_note(tmp_path):
    rows = [f"2024-01-{day:02d},order A{day},{day}" for day in range(1, 30)]
    (tmp_path / "p.csv").write_text("\n".join(["Date,note,Trades", *rows]) + "\n")
    assert not any("note" in note for note in read_contents(tmp_path / "p.csv").notes)


def test_empty_columns_share_one_note_and_an_unnamed_column_is_described(tmp_path):
    rows = "".join(f"2024-01-{day:02d},{day},,,\n" for day in range(1, 32))
    (tmp_path / "a.csv").write_text(",OBS_VALUE,OBS_COM,BREAKS,COVERAGE\n" + rows)
    notes = read_contents(tmp_path / "a.csv").notes
    assert "3 columns were left out because they hold no number: 'OBS_COM', 'BREAKS', 'COVERAGE'" in notes
    assert "the first column, which has no name, was taken as the times; the option 'time' selects another" in notes
    assert not [note for note in notes if note.startswith("column 'BREAKS'")]
