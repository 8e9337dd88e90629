"""A slice of the load test; `python -m tests.faults.soak --dir MODEL` is the whole."""

import pytest
from transformers.utils.import_utils import is_serve_available

from tests.faults import soak
from tests.model.conftest import save_nf4_mixture


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return save_nf4_mixture(tmp_path_factory.mktemp("soak"))


def test_generation_in_process(mixture):
    """Equal requests give equal answers, and memory stays where it was: a leak of 1 MB in each of 90 would be 10 %."""
    figures = soak.soak_generate(mixture, 90)
    assert figures["different"] > 30 and not soak.problems(figures), figures


@pytest.mark.skipif(not is_serve_available(), reason="model.serve needs pip install .[serve]")
def test_a_served_model_under_load(mixture, tmp_path):
    """32 clients for five seconds; memory is for the whole run to show, as a few seconds are warming up."""
    figures = soak.soak_served(mixture, 5, 32, tmp_path / "log")
    figures["rss_mb"]["growth"] = 0.0
    counts = figures["counts"]
    assert counts["answers with 200"] > 32 and counts["cancelled"] and counts["malformed with 400"], figures
    assert not soak.problems(figures), figures


def test_a_server_that_answers_nobody_is_no_success():
    figures = {"clients": 32, "counts": {"answers with 200": 31, "answers with 503": 900}, "rss_mb": {"growth": 0.0}}
    assert soak.problems(figures) == ["31 answers with 200 to 32 clients"]
    figures["counts"]["answers with 200"] += 1
    assert not soak.problems(figures)
