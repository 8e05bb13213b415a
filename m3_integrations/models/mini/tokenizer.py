"""m3-mini's tokenizer: Unigram with SentencePiece's normalization, from the weight file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from m3_integrations.models.mini.weight_file import WeightFile


def build_tokenizer(file: WeightFile, ids: Sequence[int] | None = None) -> Tokenizer:
    """Build the tokenizer.

    Args:
        file: Weight file.
        ids: Pieces of the vocabulary, with the special ones; token i of the tokenizer is then piece ids[i]. None takes
            all.
    """
    numbers = np.arange(len(file.scores)) if ids is None else np.asarray(ids)
    # Six decimals survive a round trip through tokenizer.json.
    scores = np.round(file.scores[numbers].astype(np.float64), 6).tolist()
    pieces = file.pieces if ids is None else [file.piece(id) for id in ids]
    bos, eos, unk = (int(np.searchsorted(numbers, id)) for id in (file.bos, file.eos, file.unk))
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=unk, byte_fallback=False))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    begin, end = pieces[bos], pieces[eos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", end, end, "$B", end],
        special_tokens=[(begin, bos), (end, eos)],
    )
    tokenizer.add_special_tokens(list(special_tokens(file).values()))
    return tokenizer


def encode_text(file: WeightFile, text: str) -> tuple[Encoding, npt.NDArray[np.int64]]:
    """Tokenize one text by the pieces that occur in it, many times as fast as building the whole tokenizer.

    A Unigram segmentation depends on the pieces within the text, and on the least probable one, from which the
    library derives the score of an unknown character.

    Args:
        file: Weight file.
        text: Text without special tokens.

    Returns:
        The encoding, whose ids are not those of the model, and the ids of the model.
    """
    words = [word for word, _ in _pre_tokenizer().pre_tokenize_str(_normalizer().normalize_str(text))]
    always = {file.bos, file.eos, file.pad, file.unk, len(file.scores) - 1, int(np.argmin(file.scores))}
    ids = sorted({*file.pieces_in("\0".join(words)), *always})
    encoding = build_tokenizer(file, ids).encode(text)
    return encoding, np.array(ids)[encoding.ids]


def special_tokens(file: WeightFile) -> dict[str, str]:
    """Return special tokens by transformers' names."""
    bos, eos, pad, unk = (file.piece(i) for i in (file.bos, file.eos, file.pad, file.unk))
    mask = file.piece(len(file.scores) - 1)
    return {
        "bos_token": bos,
        "cls_token": bos,
        "eos_token": eos,
        "sep_token": eos,
        "pad_token": pad,
        "unk_token": unk,
        "mask_token": mask,
    }


def _normalizer() -> normalizers.Normalizer:
    """Return SentencePiece's nmt_nfkc normalizer.

    Some controls vanish, others and invisible characters become spaces, then NFKC applies: equal to the weight file's
    character map, entry by entry. NFKC changes the full-width tilde and SentencePiece keeps it, so a noncharacter
    replaces it during NFKC.
    """
    placeholder = "\U0010fffe"
    vanish = r"[\x{01}-\x{08}\x{0b}\x{0e}-\x{1f}\x{7f}\x{8f}\x{9f}]"
    space = r"[\x{09}\x{0a}\x{0c}\x{0d}\x{1680}\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]"
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(vanish), ""),
            normalizers.Replace(Regex(space), " "),
            normalizers.Replace("\uff5e", placeholder),
            normalizers.NFKC(),
            normalizers.Replace(placeholder, "\uff5e"),
        ]
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
