"""Requests of the server, validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from m3_integrations.core.encoded import Mode
from m3_integrations.encoders.remote import Role
from m3_integrations.encoders.wire_format import WireDtype

Texts = str | Annotated[list[str], Field(min_length=1)]
Text = Annotated[str, StringConstraints(min_length=1)]
_FOREIGN = ConfigDict(extra="ignore")  # shapes of other servers, whose clients may send more
_OWN = ConfigDict(extra="forbid")


class TextsRequest(BaseModel):
    """Texts to encode, as text-embeddings-inference takes them."""

    model_config = _FOREIGN
    inputs: Texts = Field(description="A text or a list of texts.")
    truncate: bool = Field(default=True, description="Accepted; long texts are read as the model's conventions state.")
    prompt_name: str | None = Field(default=None, description='"query" encodes queries, anything else passages.')

    @property
    def role(self) -> Role:
        return "query" if self.prompt_name == "query" else "passage"


class EmbedRequest(TextsRequest):
    """Body of POST /embed."""

    normalize: bool = Field(default=True, description="Must be true: the vectors are those of the encoder.")
    dimensions: int | None = Field(default=None, description="Must be the dimension of the encoder.")


class RerankRequest(BaseModel):
    """Body of POST /rerank, as text-embeddings-inference takes it."""

    model_config = _FOREIGN
    query: Text = Field(description="The query.")
    texts: Annotated[list[str], Field(min_length=1, description="Texts to rank.")]
    raw_scores: bool = Field(default=False, description="Accepted; scores are weighted sums in any case.")
    return_text: bool = Field(default=False, description="Add the texts to the answer.")
    truncate: bool = Field(default=True, description="Accepted; long texts are read as the model's conventions state.")


class OpenAIEmbeddingsRequest(BaseModel):
    """Body of POST /v1/embeddings, as OpenAI's API takes it."""

    model_config = _FOREIGN
    input: str | list[Any] = Field(description="A text or a list of texts; tokens are not accepted.")
    model: str | None = Field(default=None, description="Accepted; the answer names the model served.")
    encoding_format: Literal["float", "base64"] = Field(default="float", description="base64: float32 in base64.")
    dimensions: int | None = Field(default=None, description="Must be the dimension of the encoder.")
    input_type: Role = Field(default="passage", description="An addition to OpenAI's API, as NVIDIA NIM has it.")


class EmbedAllRequest(BaseModel):
    """Body of POST /embed_all."""

    model_config = _OWN
    inputs: Texts = Field(description="A text or a list of texts.")
    input_type: Role = Field(default="passage", description="Whether the texts are queries or passages.")
    modes: Annotated[list[Mode], Field(min_length=1)] | None = Field(default=None, description="All by default.")
    dtype: WireDtype = Field(default="float32", description="float16 halves the size and rounds.")
    format: Literal["json", "npz"] = Field(default="json", description="npz: an archive that numpy.load reads.")


class SearchRequest(BaseModel):
    """Body of POST /search."""

    model_config = _OWN
    query: str = Field(description="The question.")
    k: Annotated[int, Field(ge=1, description="Number of hits.")] = 10
    mode: Mode | Literal["hybrid"] = Field(default="hybrid", description="hybrid is the plan of the index.")
    weights: dict[Mode, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        default=None, description="Weights of the modes, instead of the plan's."
    )
    where: str | None = Field(default=None, description='Metadata filter, such as year >= 2020 and lang in ["de"].')
    explain: bool = Field(
        default=False, description="Add words (query and passage words that met), spans by mode, and heat by passage."
    )
    index: str | None = Field(default=None, description="Name of the index; needed if there are several.")


class PassagesRequest(BaseModel):
    """Body of POST /passages."""

    model_config = _OWN
    ids: Annotated[list[Text], Field(min_length=1, description="Ids of passages.")]
    index: str | None = Field(default=None, description="Name of the index; needed if there are several.")


class FeedbackRequest(BaseModel):
    """Body of POST /feedback."""

    model_config = _OWN
    query: Text = Field(description="The query that found the passage.")
    id: Text = Field(description="Id of the passage.")
    useful: bool = Field(description="Whether the passage was useful.")
    index: str | None = Field(default=None, description="Name of the index; needed if there are several.")


class IndexRequest(BaseModel):
    """An index by name."""

    model_config = _OWN
    index: str | None = Field(default=None, description="Name of the index; needed if there are several.")


class FieldsRequest(IndexRequest):
    """Query of GET /fields."""

    values: Annotated[int, Field(ge=1, le=1000)] = Field(default=20, description="Most values of a field.")
