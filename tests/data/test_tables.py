"""Cells keep the form they have in the sheet, whatever wrote it; bad tables are one sentence."""

from __future__ import annotations

import csv
import datetime as dt
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymix.data.tables import read_table


def table(tmp_path, content: str | bytes, name: str = "t.csv", encoding: str | None = None):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, encoding)


def error(tmp_path, content: str | bytes, name: str = "t.csv", encoding: str | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        table(tmp_path, content, name, encoding)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators_are_found(tmp_path, encoding, separator):
    rows = [["图片", "发票号", "金额"], ["一.png", "001", "¥1,234.50"], ["二.png", "002", "a;b|c\td"]]
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(rows)
    read = table(tmp_path, out.getvalue().encode(encoding))
    assert [list(read.columns), *map(list, read.rows)] == rows
    assert bool(read.notes) == (encoding == "gb18030")  # a guess is told


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(cells, min_size=3, max_size=3), max_size=6), st.sampled_from(",;\t|"))
def test_what_csv_writes_is_read_back_verbatim(tmp_path_factory, body, separator):
    path = tmp_path_factory.getbasetemp() / "verbatim.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["picture", "no", "sum"], *body])
    expected = [tuple(cell or None for cell in row) for row in body if any(row)]
    assert list(read_table(path).rows) == expected


def test_lines_count_quoted_breaks_and_blank_rows(tmp_path):
    read = table(tmp_path, 'a,b\n1,"x\ny"\n\n,\n2,z\n')
    assert read.rows == (("1", "x\ny"), ("2", "z")) and read.places == ("line 2", "line 6")


def test_columns_are_found_by_name_or_the_nearest_is_named(tmp_path):
    read = table(tmp_path, "image,total,total,date\na,1,2,3\n")
    assert read.column("date") == 3
    with pytest.raises(ValueError, match="no column dates, did you mean date"):
        read.column("dates")
    with pytest.raises(ValueError, match="no column zzz; its columns are image, total"):
        read.column("zzz")
    with pytest.raises(ValueError, match="2 columns called total; rename"):
        read.column("total")


def test_bad_tables_are_one_sentence(tmp_path):
    assert "line 3 has 3 cells, the first row names 2 columns; put a value" in error(tmp_path, "a,b\n1,2\n3,1,234\n")
    assert "line 2 has 1 cells" in error(tmp_path, "a,b\n1\n2,3\n")
    assert "line 2 is no csv" in error(tmp_path, 'a,b\n"x"y,1\n')
    assert "empty (0 bytes)" in error(tmp_path, "")
    assert "no rows" in error(tmp_path, "\n,,\n")
    assert "git lfs pull" in error(tmp_path, "version https://git-lfs.github.com/spec/v1\n")
    assert "not UTF-8 or GB18030" in error(tmp_path, b"a,b\n\xff\xff\xff,1\n")
    assert "not latin-x" in error(tmp_path, "a,b\n1,2\n", encoding="latin-x")
    assert "no table anymix reads" in error(tmp_path, b"\xd0\xcf\x11\xe0", name="t.xls")
    assert "no readable xlsx" in error(tmp_path, b"PK\x03\x04", name="t.xlsx")
    assert "no readable parquet" in error(tmp_path, b"PAR1", name="t.parquet")
    with pytest.raises(ValueError, match="cannot be read .No such file"):
        read_table(tmp_path / "none.csv")


def workbook(tmp_path, cells: list[list[object]], formats: dict[str, str] | None = None) -> str:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in cells:
        book.active.append(row)
    for place, form in (formats or {}).items():
        book.active[place].number_format = form
    book.save(tmp_path / "t.xlsx")
    return str(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        ("001", "General", "001"),
        (7, "000", "007"),
        (-7, "000", "-007"),
        (5, "General", "5"),
        (5.0, "General", "5"),
        (0.1 + 0.2, "General", "0.3"),
        (1234.5, "0.00", "1234.50"),
        (1234567.891, "#,##0.00", "1,234,567.89"),
        (12, "#,##0", "12"),
        (0.125, "0.0%", "12.5%"),
        (1.005, "0.00", "1.01"),
        (0.125, "0.00", "0.13"),
        (202400012345678, "General", "202400012345678"),
        (-1234.5, "#,##0.00", "-1,234.50"),
        (True, "General", "TRUE"),
        (dt.date(2024, 3, 5), "yyyy-mm-dd", "2024-03-05"),
        (dt.date(2024, 3, 5), "d/m/yy", "5/3/24"),
        (dt.datetime(2024, 3, 5, 9, 7), "yyyy/m/d h:mm", "2024/3/5 9:07"),
        (dt.date(2024, 3, 5), 'yyyy"年"m"月"d"日"', "2024年3月5日"),
        (dt.time(9, 7, 1), "hh:mm:ss", "09:07:01"),
        ("  spaced ", "@", "  spaced "),
    ],
)
def test_xlsx_cells_are_shown_as_the_sheet_shows_them(tmp_path, value, form, shown):
    path = workbook(tmp_path, [["a", "b"], [value, "x"]], {"A2": form})
    assert read_table(path).rows == ((shown, "x"),)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (5, '"¥"#,##0.00'),
        (0.5, "# ?/?"),
        (1e30, "0.00E+00"),
        (1.5e-7, "General"),
        (dt.date(2024, 3, 5), "mmm d"),
    ],
)
def test_xlsx_formats_without_a_plain_reading_are_refused(tmp_path, value, form):
    with pytest.raises(ValueError, match=r"A2 holds .* in the format .*save the sheet as csv"):
        read_table(workbook(tmp_path, [["a", "b"], [value, "x"]], {"A2": form}))


def test_xlsx_formulas_edges_and_sheets(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    with pytest.raises(ValueError, match="B2 is a formula without a saved value"):
        read_table(workbook(tmp_path, [["a", "b"], [1, "=A2*2"]]))
    path = workbook(tmp_path, [["a", "b", None], ["1", None, None], [None, None, None], ["2", "x", None]])
    book = openpyxl.load_workbook(path)
    book.create_sheet("Notes")
    book.save(path)
    read = read_table(path)
    assert read.columns == ("a", "b") and read.rows == (("1", None), ("2", "x"))
    assert read.places == ("row 2", "row 4") and "not Notes" in read.notes[0]


def test_xlsx_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    path = workbook(tmp_path, [["a"], ["1"]])
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(ValueError, match="pip install openpyxl, or save it as csv"):
        read_table(path)


def test_parquet_cells_become_text(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"image": ["a", "b"], "no": ["001", None], "n": [7, 8], "day": [dt.date(2024, 3, 5), None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert read.rows == (("a", "001", "7", "2024-03-05"), ("b", None, "8", None))
    assert read.places == ("row 1", "row 2")
    pq.write_table(pa.table({"image": [b"GIF89a"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="row 1 holds bytes"):
        read_table(tmp_path / "t.parquet")
