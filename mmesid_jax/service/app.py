"""The HTTP interface of a `Service`, as an ASGI app with an OpenAPI page."""

import asyncio
import contextlib
import pkgutil
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import mmesid_jax
from mmesid_jax.display import reporter
from mmesid_jax.service import messages
from mmesid_jax.service.batcher import QueueFull, TooLate
from mmesid_jax.service.limits import Limited
from mmesid_jax.service.messages import RequestError
from mmesid_jax.service.prometheus import CONTENT_TYPE, Measured, Metrics
from mmesid_jax.service.service import NEWEST, Service

PAGE = pkgutil.get_data(__package__, "page.html")
PATHS = frozenset(
  ("/", "/recommend", "/events", "/items", "/history", "/image", "/health", "/ready", "/metrics")
)


def create_app(
  service: Service, metrics: Metrics, token: str | None = None, *, local_only: bool = False
) -> Measured:
  """The app of a service whose model is warm. token and local_only are those of `Limited`."""

  @contextlib.asynccontextmanager
  async def run(app: FastAPI) -> AsyncIterator[None]:
    following = asyncio.create_task(service.follow_artifacts())
    yield
    following.cancel()
    service.close()

  app = FastAPI(
    title="mmesid_jax",
    version=mmesid_jax.__version__,
    summary="Recommendations from a trained workdir.",
    lifespan=run,
    redoc_url=None,
  )
  _add_handlers(app)
  _add_routes(app, service, metrics)
  limits = service.limits
  limited = Limited(app, limits.body_bytes, limits.seconds, token, local_only=local_only)
  return Measured(limited, metrics, PATHS)


def _json(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
  return Response(msgspec.json.encode(content), status, headers, "application/json")


def _fault(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
  return _json({"error": error}, status, headers)


def _add_handlers(app: FastAPI) -> None:
  @app.exception_handler(RequestValidationError)
  def invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
      return _fault(400, f"the body is not JSON: {first['ctx']['error']}")
    place = ".".join(str(part) for part in first["loc"][1:] if part not in ("int", "str"))
    return _fault(422, f"{place or 'the body'}: {first['msg']}")

  @app.exception_handler(HTTPException)
  def refused(request: Request, error: HTTPException) -> Response:
    return _fault(error.status_code, str(error.detail), error.headers)

  @app.exception_handler(RequestError)
  def mistake(request: Request, error: RequestError) -> Response:
    return _fault(422, str(error))

  @app.exception_handler(QueueFull)
  def full(request: Request, error: QueueFull) -> Response:
    return _fault(429, "too many requests wait; ask again in a second", {"Retry-After": "1"})

  @app.exception_handler(TooLate)
  def late(request: Request, error: TooLate) -> Response:
    return _fault(503, "the request waited too long", {"Retry-After": "1"})

  @app.exception_handler(Exception)
  def broken(request: Request, error: Exception) -> Response:
    reporter.warn(f"{request.url.path}: {type(error).__name__}: {error}")
    return _fault(500, "the request could not be answered; the log of the service says why")


def _add_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
  refused = {
    status: {"model": messages.Fault, "description": text}
    for status, text in (
      (401, "No token, or a wrong one"),
      (413, "The body is too large"),
      (421, "The service is asked by another name than its own"),
      (415, "The body is not said to be JSON"),
      (422, "A field is wrong; the text says which"),
      (429, "Too many requests wait"),
      (503, "The request waited too long"),
    )
  }

  @app.post("/recommend", response_model=messages.Recommended, responses=refused)
  async def recommend(request: messages.Recommend) -> Response:
    """The best items for histories or users."""
    return _json(await service.recommend(request))

  @app.post("/events", response_model=messages.History, responses=refused)
  async def events(request: messages.Events) -> Response:
    """Adds events to a user's history; the next answer knows them."""
    return _json(await service.add_events(request))

  @app.post("/items", response_model=messages.Added, responses=refused)
  async def items(request: messages.NewItems) -> Response:
    """Adds items that training never saw; the answer comes once they can be recommended."""
    return _json(await service.add_items(request))

  @app.get("/history", response_model=messages.History, responses=refused)
  async def history(
    user: Annotated[int | None, Query(description="A user's id.")] = None,
    key: Annotated[str | None, Query(description="A user's key.")] = None,
    newest: Annotated[int, Query(ge=1, le=NEWEST, description="Most events.")] = NEWEST,
  ) -> Response:
    """A user's newest events, oldest first."""
    if (user is None) == (key is None):
      return _fault(422, "expected one of user and key")
    return _json(service.history(key if user is None else user, newest))

  @app.get("/image", response_class=Response, responses={404: {"model": messages.Fault}, **refused})
  async def image(item: Annotated[int, Query(description="An item's id.")]) -> Response:
    """The image of an item."""
    found = await asyncio.to_thread(service.images.read, item)
    if found is None:
      return _fault(404, f"item {item} has no image here")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
    return Response(found[0], headers=headers, media_type=found[1])

  @app.get("/health")
  async def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}

  @app.get("/ready")
  async def ready() -> Response:
    """Whether requests are answered; a service that is not warm does not listen."""
    if not service.batcher.is_alive:
      return _fault(503, "the service is stopping")
    counts = {"items": service.live.num_items, "images": len(service.images)}
    return _json({"status": "ready"} | counts | {"reloads": service.reloads})

  @app.get("/metrics", response_class=Response)
  async def figures() -> Response:
    """Figures for Prometheus."""
    return Response(metrics.text(), media_type=CONTENT_TYPE)

  @app.get("/", include_in_schema=False)
  async def page() -> Response:
    headers = {
      "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src 'self' blob:; "
      "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    }
    return Response(PAGE, headers=headers, media_type="text/html; charset=utf-8")
