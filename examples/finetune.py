"""Teach the embedded model from judged questions: hard negatives mined with itself, then its heads, in all modes.

python examples/finetune.py [STEPS]

The encoder rests here, so that it takes minutes without a GPU; parts=("encoder", "sparse", "multi_vector"), or
low_rank=16, lets it learn too. The folder that comes of it loads in M3Embedding, M3Encoder and FlagEmbedding.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from m3_integrations import M3Encoder, MemoryIndex, ingest
from m3_integrations.evaluation.beir import read_beir
from m3_integrations.evaluation.judging import judge, plans_of
from m3_integrations.llama_index import M3FinetuneEngine

WORLD = Path(__file__).parent / "world"


def main(steps: int = 40) -> None:
    train, dev, test = (read_beir(WORLD, split) for split in ("train", "dev", "test"))
    with TemporaryDirectory() as folder:
        engine = M3FinetuneEngine(  # or an EmbeddingQAFinetuneDataset, or the path of one
            train,
            model_output_path=Path(folder, "model"),
            val_dataset=dev,
            steps=steps,
            parts=("sparse", "multi_vector"),
        )
        engine.finetune()
        print(engine.result)
        for when, model in (("before", "m3-mini"), ("after", str(engine.result.folder))):
            show(when, M3Encoder.from_pretrained(model), test)


def show(when: str, encoder: M3Encoder, test) -> None:
    with MemoryIndex() as index:
        ingest(encoder, index, test.passages)
        found = judge(encoder, index, test.queries, plans_of(encoder.weights), ["ndcg@10"])
    print(f"{when:6}  " + "  ".join(f"{plan} {values['ndcg@10']:.3f}" for plan, values in found.items()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
