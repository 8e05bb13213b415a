"""A LlamaIndex query engine from documents to answers, offline: m3-mini retrieves, MockLLM repeats its prompt.

python examples/llama_index_query_engine.py
"""

from __future__ import annotations

from tempfile import TemporaryDirectory

from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from m3_integrations.llama_index import M3Embedding, M3Rerank, M3VectorStore

DOCUMENTS = [
    Document(
        id_="zhaozhou",
        text="The Zhaozhou bridge was built about 605 by Li Chun. It is the oldest open-spandrel stone bridge.",
        metadata={"year": 605, "country": "China"},
    ),
    Document(
        id_="forth",
        text="The Forth Bridge carries the railway over the Firth of Forth since 1890.",
        metadata={"year": 1890, "country": "Scotland"},
    ),
    Document(
        id_="göltzsch",
        text="Die Göltzschtalbrücke ist die größte Ziegelsteinbrücke der Welt; sie wurde 1851 eingeweiht.",
        metadata={"year": 1851, "country": "Deutschland"},
    ),
]
OLD = MetadataFilters(filters=[MetadataFilter(key="year", operator=FilterOperator.LT, value=1000)])


def main() -> None:
    Settings.llm = MockLLM()  # your LLM
    Settings.embed_model = embedding = M3Embedding()
    store = M3VectorStore()  # with the same model: each text is encoded once for all three modes

    pipeline = IngestionPipeline(transformations=[embedding.node_parser(), embedding], vector_store=store)
    pipeline.run(documents=DOCUMENTS)
    index = VectorStoreIndex.from_vector_store(store)

    hybrid = index.as_query_engine(
        vector_store_query_mode="hybrid",
        similarity_top_k=3,
        node_postprocessors=[M3Rerank(mode="multi_vector", top_n=1)],
    )
    show(hybrid.query("谁建造了赵州桥？"))
    show(hybrid.query("Which brick bridge was inaugurated in Germany?"))
    show(index.as_query_engine(similarity_top_k=1, filters=OLD).query("Which bridge carries a railway?"))

    with TemporaryDirectory() as folder:
        index.storage_context.persist(folder)
        loaded = M3VectorStore.from_persist_dir(folder)
        context = StorageContext.from_defaults(persist_dir=folder, vector_store=loaded)
        reloaded = VectorStoreIndex.from_vector_store(context.vector_store).as_query_engine(similarity_top_k=1)
        show(reloaded.query("When was the Forth Bridge opened?"))


def show(response: RESPONSE_TYPE) -> None:
    for each in response.source_nodes:
        print(f"{each.score:.3f}  {each.node.metadata['year']:>4}  {each.node.get_content()}")


if __name__ == "__main__":
    main()
