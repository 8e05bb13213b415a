"""`m3 demo` with a tiny checkpoint."""

from __future__ import annotations


def test_the_demo_writes_its_pages(run, bge_m3, tmp_path):
    result = run("demo", "--out", tmp_path / "out", "--model", bge_m3(positions=64))
    assert result.exit_code == 0, result.output
    assert "the same index, nudged" in result.output
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "26 milyon tuğladan" in page
    assert "ndcg@10" in page
    assert "<mark" in page
    assert 'href="nudge.html"' in page
    assert "<svg" in (tmp_path / "out" / "nudge.html").read_text(encoding="utf-8")


def test_the_demo_is_a_document(run_json, bge_m3, tmp_path):
    document = run_json("demo", "--out", tmp_path / "out", "--model", bge_m3(positions=64))
    assert document["out"] == str(tmp_path / "out")
    assert document["before"].keys() == document["after"].keys()
