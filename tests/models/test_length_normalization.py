"""Lexical weights fitted to the length of their text: by the formula, through a folder, and only where one asks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from m3_integrations import M3Encoder
from m3_integrations.core.errors import CheckpointError, PartNotExported
from m3_integrations.encoders import EncoderConfig
from m3_integrations.models.checkpoint import OWN_FILE
from m3_integrations.models.conventions import PivotedLengthNormalization

TEXTS = ["the bridge", "", "the bridge over the river and the road to the old harbour " * 3, "橋はどこにある"]
LENGTH = PivotedLengthNormalization(slope=0.4, pivot=0.3)


@pytest.fixture(scope="module")
def encoder(bge_m3):
    encoder = M3Encoder.from_pretrained(str(bge_m3()), device="cpu", max_length=64)
    encoder.checkpoint.heads.sparse.bias += 0.1  # a random head weighs half of the tokens with nothing
    return encoder


@pytest.fixture(scope="module")
def fitted(encoder):
    conventions = replace(encoder.conventions, lexical_length=LENGTH)
    return M3Encoder(replace(encoder.checkpoint, conventions=conventions), EncoderConfig(device="cpu"))


@given(st.floats(0, 1), st.floats(0.1, 10))
def test_weights_as_long_as_the_pivot_stay(slope, pivot):
    assert PivotedLengthNormalization(slope, pivot).scale(np.array([pivot])) == pytest.approx(1)


def test_a_slope_of_0_leaves_weights_and_one_of_1_makes_them_as_long_as_the_pivot():
    norms = np.array([0.5, 2.0, 8.0])
    assert PivotedLengthNormalization(0, 2).scale(norms).tolist() == [1, 1, 1]
    np.testing.assert_allclose(PivotedLengthNormalization(1, 2).scale(norms) * norms, [2, 2, 2])


def test_half_way_between_is_worked_by_hand():
    assert PivotedLengthNormalization(0.5, 2).scale(torch.tensor([6.0])).item() == pytest.approx(
        1 / (0.5 + 0.5 * 6 / 2)
    )


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], ["", ""]])
def test_each_row_is_the_plain_one_times_its_share(encoder, fitted, texts):
    plain, found = (each.encode_passages(texts, ("sparse",)).sparse.toarray() for each in (encoder, fitted))
    norms = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain / (0.6 + 0.4 * norms / 0.3), rtol=1e-5)


def test_questions_are_fitted_alike_and_the_other_modes_stay(encoder, fitted):
    plain, found = encoder.encode_queries(TEXTS), fitted.encode_queries(TEXTS)
    np.testing.assert_array_equal(found.dense, plain.dense)
    np.testing.assert_array_equal(found.multi_vector.values, plain.multi_vector.values)
    np.testing.assert_allclose(found.sparse.toarray(), fitted.encode_passages(TEXTS, ("sparse",)).sparse.toarray())


def test_windows_are_fitted_as_the_text_that_they_are_of(encoder, fitted):
    long = [" ".join(TEXTS) * 4]
    windows = EncoderConfig(device="cpu", max_length=32, window_overlap=4)
    whole, plain = (
        M3Encoder(each.checkpoint, windows).encode_passages(long, ("sparse",)) for each in (fitted, encoder)
    )
    share = LENGTH.scale(np.linalg.norm(plain.sparse.data))
    np.testing.assert_allclose(whole.sparse.data, plain.sparse.data * share, rtol=1e-5)


def test_a_saved_folder_fits_alike_and_says_what_is_lost(fitted, tmp_path):
    with pytest.warns(PartNotExported, match=r"length normalization \(m3_config\.json\)"):
        fitted.save_pretrained(tmp_path)
    again = M3Encoder.from_pretrained(str(tmp_path), device="cpu")
    assert again.conventions.lexical_length == LENGTH
    assert again.fingerprint == fitted.fingerprint
    found, expected = (each.encode_passages(TEXTS, ("sparse",)).sparse.toarray() for each in (again, fitted))
    np.testing.assert_array_equal(found, expected)


def test_what_is_fitted_is_another_encoder(encoder, fitted):
    assert fitted.fingerprint != encoder.fingerprint


@pytest.mark.parametrize("wrong", [{"slope": 2, "pivot": 1}, {"slope": 0.5, "pivot": 0}, {"slope": 0.5}, 3])
def test_settings_that_make_no_sense_are_refused(encoder, tmp_path, wrong):
    encoder.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / OWN_FILE).read_text())
    (tmp_path / OWN_FILE).write_text(json.dumps({**stated, "lexical_length": wrong}))
    with pytest.raises(CheckpointError, match="options that this version cannot use"):
        M3Encoder.from_pretrained(str(tmp_path))
