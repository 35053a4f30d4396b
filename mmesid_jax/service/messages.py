"""The fields of requests and answers, as the OpenAPI page of the service shows them."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mmesid_jax.errors import UserError


class RequestError(UserError):
  """A mistake in a request, whose text its sender may see."""


def _check_text(text: str) -> str:
  try:
    text.encode()
  except UnicodeEncodeError:
    raise ValueError("holds half of a surrogate pair, which is no text") from None
  return text


Text = Annotated[str, AfterValidator(_check_text)]
Name = Annotated[int | Text, Field(description="An id, or a key as in items.jsonl or users.jsonl.")]


class Message(BaseModel):
  """A message of known fields; numbers are not read from texts."""

  model_config = ConfigDict(extra="forbid", strict=True)


class Recommend(Message):
  """The histories or users that want recommendations, and the options."""

  histories: list[list[Name]] | None = Field(
    None, description="Items by id or key, oldest first; an empty one is a new user."
  )
  users: list[Name] | None = Field(
    None, description="Users by id or key, with their events; the newest ones of very many."
  )
  top_k: int = Field(10, ge=1, description="Number of items.")
  repeat: bool = Field(False, description="Recommend items of the history, too.")
  only_new: bool = Field(False, description="Recommend only items of POST /items.")
  reasons: bool = Field(False, description="Give the summands of each score.")

  model_config = ConfigDict(
    json_schema_extra={
      "examples": [
        {"histories": [[12, 57, 401]], "top_k": 5, "reasons": True},
        {"users": [1, 2, 3]},
      ]
    }
  )


class Item(Message):
  """One recommended item."""

  item: int
  key: str | None = None
  title: str | None = None
  score: float
  parts: dict[str, float] | None = Field(None, description="Summands of the score by source.")


class Answer(Message):
  """The items of one history, best first."""

  items: list[Item]


class Recommended(Message):
  """An answer for each history or user, in their order."""

  answers: list[Answer]


class Events(Message):
  """Items that a user took, oldest first, added to the end of their history."""

  user: Name = Field(description="A user by id or key; a key that is not known is a new user.")
  items: list[Name] = Field(min_length=1, max_length=1024)

  model_config = ConfigDict(json_schema_extra={"examples": [{"user": 1, "items": [57, 12]}]})


class History(Message):
  """The newest events of a user, oldest first: of the data set and of POST /events."""

  user: int | str
  earlier: int = Field(description="Number of events before these.")
  items: list[int]
  titles: list[str | None]


class NewItem(Message):
  """An item that training never saw, with its vectors, or with texts to make them of."""

  key: Text | None = None
  title: Text | None = None
  fields: dict[Text, Text | list[Text]] = Field(
    {},
    description="Other fields as in items.jsonl, such as brand; read where vectors are not given.",
  )
  vectors: dict[Text, list[float]] | None = Field(
    None,
    description="By modality, as the feature table has them: text, visual, ... If not given, the "
    "title and the other fields are encoded.",
  )


class NewItems(Message):
  """Items to add to the catalogue. All of them have vectors of the same modalities, or none."""

  items: list[NewItem] = Field(min_length=1)

  model_config = ConfigDict(
    json_schema_extra={
      "examples": [
        {"items": [{"title": "Rose soap", "fields": {"brand": "Flora"}}]},
        {"items": [{"title": "Rose soap", "vectors": {"text": [0.1, -0.2]}}]},
      ]
    }
  )


class Added(Message):
  """The ids of added items, in their order."""

  items: list[int]


class Fault(Message):
  """Why a request was refused."""

  error: str
