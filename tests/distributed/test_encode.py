"""A corpus is encoded once, whoever does it and however often it is begun."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from functools import partial

import pytest

from m3_integrations import MemoryIndex, Passage
from m3_integrations.core.errors import WrongEncoder
from m3_integrations.distributed.encode import encode_corpus, ingest_sharded, passages_of, read_corpus
from m3_integrations.distributed.executors import InProcess, ProcessPool, RayActors
from m3_integrations.testing import HashEncoder
from m3_integrations.testing.sample_data import same_vectors
from tests.distributed.plain import Plain
from tests.optional import requires

PASSAGES = [Passage(f"p{i:03d}", f"text {i} red cat"[: i % 16], {"i": i, "t": "é\x00"}) for i in range(230)]


def files(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def test_what_was_encoded_is_read_back_to_the_bit(tmp_path):
    assert encode_corpus(iter(PASSAGES), tmp_path, Plain(), part=50) == (230, 5, 5)
    read = list(read_corpus(tmp_path))
    assert [each for part in read for each in part.passages] == PASSAGES
    encoded = read[0].encoded.join(*(part.encoded for part in read[1:]))
    assert same_vectors(encoded, HashEncoder().encode_passages([each.text for each in PASSAGES]))


@pytest.mark.parametrize("modes", [["dense"], ["sparse", "multi_vector"]])
def test_some_modes_alone(tmp_path, modes):
    encode_corpus(PASSAGES[:3], tmp_path, Plain(), modes=modes)
    (part,) = read_corpus(tmp_path)
    assert same_vectors(part.encoded, HashEncoder().encode_passages([each.text for each in PASSAGES[:3]], modes))


@pytest.mark.parametrize(
    "kind", [pytest.param(ProcessPool(2), id="processes"), pytest.param(RayActors(2), id="ray", marks=requires("ray"))]
)
def test_other_workers_leave_the_same_files(tmp_path, kind):
    encode_corpus(PASSAGES, tmp_path / "here", Plain(), part=50, workers=InProcess())
    encode_corpus(PASSAGES, tmp_path / "there", Plain(), part=50, workers=kind)
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_begun_again_it_encodes_what_is_not_there(tmp_path):
    encode_corpus(PASSAGES, tmp_path, Plain(), part=50)
    before = files(tmp_path)
    (tmp_path / "part-000003.parquet").unlink()
    assert encode_corpus(PASSAGES, tmp_path, Plain(), part=50) == (230, 5, 1)
    assert files(tmp_path) == before
    changed = [Passage("p000", "another text"), *PASSAGES[1:]]
    assert encode_corpus(changed, tmp_path, Plain(), part=50).encoded == 1


def test_killed_half_way_and_begun_again_it_leaves_what_an_uninterrupted_run_leaves(tmp_path):
    slow = partial(encode_corpus, PASSAGES, tmp_path / "killed", Plain(0, 0.3), part=10)
    process = multiprocessing.get_context("spawn").Process(target=slow)
    process.start()
    while not (tmp_path / "killed" / "part-000004.parquet").exists():
        time.sleep(0.02)
        assert process.is_alive()
    process.kill()
    process.join()
    there = len(list((tmp_path / "killed").glob("*.parquet")))
    assert 4 < there < 23
    assert encode_corpus(PASSAGES, tmp_path / "killed", Plain(), part=10) == (230, 23, 23 - there)
    encode_corpus(PASSAGES, tmp_path / "whole", Plain(), part=10)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@requires("ray")
def test_a_cluster_that_loses_a_machine_at_work_leaves_the_same_files(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        work = threading.Thread(
            target=encode_corpus,
            args=(PASSAGES, tmp_path / "lossy", Plain(0, 0.5)),
            kwargs={"part": 10, "workers": RayActors(3)},
        )
        work.start()
        while not list((tmp_path / "lossy").glob("*.parquet")):
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)
        work.join(timeout=120)
        assert not work.is_alive()
    finally:
        ray.shutdown()
        cluster.shutdown()
    encode_corpus(PASSAGES, tmp_path / "whole", Plain(), part=10)
    assert files(tmp_path / "lossy") == files(tmp_path / "whole")


@requires("ray")
def test_passages_are_read_by_ray_in_the_order_of_the_files(tmp_path):
    import ray.data

    for part in range(4):
        lines = [{"id": each.id, "text": each.text, "metadata": each.metadata} for each in PASSAGES[part * 50 :][:50]]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(passages_of(ray.data.read_json(str(tmp_path), lines=True))) == PASSAGES[:200]
    with pytest.raises(ValueError, match="columns id and text"):
        list(passages_of(ray.data.from_items([{"text": "red"}])))


def test_a_passage_that_comes_again_counts_once_and_must_say_the_same(tmp_path):
    assert encode_corpus([*PASSAGES[:5], *PASSAGES[:5]], tmp_path, Plain()).passages == 5
    with pytest.raises(ValueError, match="two passages with the id 'p000'"):
        encode_corpus([PASSAGES[0], Passage("p000", "another")], tmp_path, Plain())
    with pytest.raises(ValueError, match="at least 1"):
        encode_corpus(PASSAGES, tmp_path, Plain(), part=0)
    with pytest.raises(ValueError, match="lone surrogate"):
        encode_corpus([Passage("a", "\ud800")], tmp_path / "odd", Plain())


def test_parts_of_another_encoder_are_made_anew_and_never_ingested_together(tmp_path):
    encode_corpus(PASSAGES, tmp_path / "one", Plain(), part=50)
    encode_corpus(PASSAGES, tmp_path / "other", Plain(seed=1), part=50)
    assert encode_corpus(PASSAGES, tmp_path / "other", Plain(), part=50).encoded == 5
    encode_corpus(PASSAGES, tmp_path / "other", Plain(seed=1), part=50)
    (tmp_path / "one" / "part-000001.parquet").replace(tmp_path / "other" / "part-000001.parquet")
    with pytest.raises(WrongEncoder, match="encode into a new folder"):
        ingest_sharded(tmp_path / "other", MemoryIndex())


def test_a_folder_is_ingested_once(tmp_path):
    encode_corpus(PASSAGES, tmp_path, Plain(), part=50)
    index = MemoryIndex()
    index.add(PASSAGES[:70], HashEncoder().encode_passages([each.text for each in PASSAGES[:70]]))
    assert [ingest_sharded(tmp_path, index), ingest_sharded(tmp_path, index)] == [160, 0]
    assert index.passages() == PASSAGES
