"""Fine-tune the bundled model on judged queries: mine hard negatives with it, then train its heads in all modes.

python examples/finetune.py [STEPS [DATA]]

DATA is a BEIR folder with the splits train, dev and test, by default the demo's corpus. Only the heads are trained,
which takes minutes without a GPU; parts=("encoder", "sparse", "multi_vector") or low_rank=16 train the encoder, too.
M3Embedding, M3Encoder and FlagEmbedding load the resulting folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from m3_integrations import M3Encoder, MemoryIndex, ingest
from m3_integrations.data import JudgedCollection, read_beir
from m3_integrations.evaluation import default_plans, evaluate_plans
from m3_integrations.llama_index import M3FinetuneEngine

WORLD = Path(__file__).parent / "world"


def main(steps: int = 40, data: str | Path = WORLD) -> None:
    train, dev, test = (read_beir(data, split) for split in ("train", "dev", "test"))
    with TemporaryDirectory() as folder:
        engine = M3FinetuneEngine(  # a JudgedCollection, an EmbeddingQAFinetuneDataset, or the path of one
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


def show(when: str, encoder: M3Encoder, test: JudgedCollection) -> None:
    with MemoryIndex() as index:
        ingest(encoder, index, test.passages)
        metrics = evaluate_plans(encoder, index, test.queries, default_plans(encoder.weights), ["ndcg@10"])
    print(f"{when:6}  " + "  ".join(f"{plan} {values['ndcg@10']:.3f}" for plan, values in metrics.items()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
