"""A LangChain chain from documents to an answer, offline: m3-mini retrieves, LangChain's fake chat model answers.

python examples/langchain_chain.py
"""

from __future__ import annotations

from datetime import date
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableParallel, RunnablePassthrough

from m3_integrations.langchain import M3Embeddings, M3Reranker, M3VectorStore

DOCUMENTS = [
    Document(
        id="forth",
        page_content="The Forth Bridge was opened on 4 March 1890. It carries two railway tracks.",
        metadata={"opened": date(1890, 3, 4), "where": {"country": "Scotland"}},
    ),
    Document(
        id="akashi",
        page_content="明石海峡大橋は1998年4月5日に開通した、神戸市と淡路島を結ぶ吊橋である。",
        metadata={"opened": date(1998, 4, 5), "where": {"country": "日本"}},
    ),
    Document(
        id="tower",
        page_content="The Tower Bridge in London was opened on 30 June 1894; its roadway can be raised.",
        metadata={"opened": date(1894, 6, 30), "where": {"country": "England"}},
    ),
]
PROMPT = ChatPromptTemplate.from_template("Answer from these passages:\n{context}\n\nQuestion: {question}")
ANSWER = "It was opened on 4 March 1890 [forth]."


def format_documents(documents: list[Document]) -> str:
    return "\n".join(f"[{document.id}] {document.page_content}" for document in documents)


def build_chain(store: M3VectorStore) -> Runnable[str, dict[str, Any]]:
    """Build a chain that maps a question to {"context": documents, "question": question, "answer": text}."""
    retrieved = RunnableParallel(query=RunnablePassthrough(), documents=store.as_retriever(search_kwargs={"k": 3}))
    reranked = retrieved | M3Reranker(encoder=store.encoder, mode="multi_vector", top_n=2)
    answer = (
        RunnablePassthrough.assign(context=lambda inputs: format_documents(inputs["context"]))
        | PROMPT
        | FakeListChatModel(responses=[ANSWER])  # your chat model
        | StrOutputParser()
    )
    return RunnableParallel(context=reranked, question=RunnablePassthrough()).assign(answer=answer)


def main() -> None:
    store = M3VectorStore.from_documents(DOCUMENTS, M3Embeddings())  # on disk: from_folder("bridges")

    for chunk in build_chain(store).stream("Wann wurde die Brücke über den Forth eröffnet?"):
        if "context" in chunk:
            print("from", ", ".join(document.id for document in chunk["context"]))
        print(chunk.get("answer", ""), end="", flush=True)
    print()

    modern = store.similarity_search("bridge", filter={"opened": {"$gte": date(1900, 1, 1)}})
    print("after 1900:", [(document.metadata["where"]["country"], document.metadata["opened"]) for document in modern])
    for document, score in store.similarity_search_with_relevance_scores("A bridge whose road opens for ships", k=2):
        print(f"{score:.2f} {document.id}")


if __name__ == "__main__":
    main()
