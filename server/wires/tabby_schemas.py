"""Tabby's wire, as its editor plugins speak it. Unknown fields are let pass."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from superdraft.decoding.text.fim import ContextFile, Gap
from superdraft.server.wires.common import Integer, Number, without_nulls


class _TabbyModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        return without_nulls(data)


class TabbySnippet(_TabbyModel):
    """A piece of code from elsewhere."""

    filepath: str = ""
    body: str


class TabbySegments(_TabbyModel):
    """The text around the cursor, and what the plugin found to go with it."""

    prefix: str
    suffix: str = ""
    filepath: str = ""
    declarations: list[TabbySnippet] = []
    relevant_snippets_from_changed_files: list[TabbySnippet] = []
    relevant_snippets_from_recently_opened_files: list[TabbySnippet] = []

    def gap(self) -> Gap:
        """The place to fill; declarations of what is used there are the most useful context."""
        snippets = [
            *self.relevant_snippets_from_recently_opened_files,
            *self.relevant_snippets_from_changed_files,
            *self.declarations,
        ]
        context = tuple(ContextFile(snippet.filepath, snippet.body) for snippet in snippets)
        return Gap(self.prefix, self.suffix, context, self.filepath)


class TabbyRequest(_TabbyModel):
    """`POST /v1/completions` with `segments`. `temperature` and `seed` are for the sampling strategies."""

    segments: TabbySegments
    language: str = ""
    user: str | None = Field(default=None, max_length=256)
    temperature: Number = 1.0
    seed: Integer | None = Field(default=None, ge=-(2**63), lt=2**64)


class TabbyEvent(_TabbyModel):
    """`POST /v1/events`: what the user did with a choice."""

    type: Literal["view", "select", "dismiss"]
    completion_id: str = Field(min_length=1, max_length=128)
    choice_index: Integer = Field(default=0, ge=0)
    view_id: str | None = None
    elapsed: Number | None = None


class TabbyVersion(BaseModel):
    """`git_describe` must not be empty, or the plugins take this for no Tabby server."""

    git_describe: str


class TabbyHealth(BaseModel):
    """What the plugins ask before anything else."""

    model: str
    device: str
    version: TabbyVersion


class TabbyServerSetting(BaseModel):
    """What the server wants of the plugins."""

    disable_client_side_telemetry: bool = True
