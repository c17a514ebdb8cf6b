"""What a W&B server remembers, and the GraphQL operations of wandb 0.31 and wandb-workspaces 0.4 on it.

Observed on the wire, not read from a specification: an operation nobody here answers is answered with GraphQL
errors at HTTP 200 and kept in `Store.unknown`, so that a new version of the client shows what it wants.
"""

import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

ENTITY = "local"
HISTORY = "wandb-history.jsonl"


class Refused(Exception):
    """An answer that isn't data: HTTP status and message."""

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.message, self.status = message, status


@dataclass
class Run:
    """One run as the server has it. lines: file -> offset -> line, as file_stream sends them."""

    entity: str
    project: str
    name: str
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    commit: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    is_preempting: bool = False
    created: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return encoded(f"Run:v1:{self.name}:{self.project}:{self.entity}")

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows in the order of their offsets."""
        return [json.loads(line) for _, line in sorted(self.lines.get(HISTORY, {}).items())]

    @property
    def values(self) -> dict[str, Any]:
        """The configuration as the user gave it."""
        return {key: item["value"] for key, item in self.config.items() if not key.startswith("_")}

    def count(self, file: str) -> int:
        return max(self.lines.get(file, {}), default=-1) + 1

    def tail(self, file: str) -> str:
        lines = self.lines.get(file, {})
        return json.dumps([lines[max(lines)]] if lines else [])


@dataclass
class Store:
    """Everything the server knows; survives its death, as a database does."""

    runs: dict[tuple[str, str, str], Run] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    entities: set[str] = field(default_factory=lambda: {ENTITY})
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    charts: list[dict[str, Any]] = field(default_factory=list)
    sweeps: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    creations: list[float] = field(default_factory=list)

    def run(self, name: str) -> Run:
        """The one run of that id, in whatever project."""
        (found,) = [run for run in self.runs.values() if run.name == name]
        return found

    def delete(self, name: str) -> None:
        """What the delete button does: the id is burnt for ever."""
        self.runs = {key: run for key, run in self.runs.items() if run.name != name}
        self.deleted.add(name)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Graphql:
    """`answer(operation, variables)` gives the data or raises Refused."""

    def __init__(self, store: Store, base_url: str) -> None:
        self.store, self.base_url = store, base_url
        self.handlers = {
            name.removeprefix("on_"): getattr(self, name) for name in dir(self) if name.startswith("on_")
        }
        aliases = {
            "GetViewer": "Viewer",
            "GetDefaultEntity": "Viewer",
            "LightweightRuns": "Runs",
            "GetRuns": "Runs",
            "upsertView": "UpsertView2",
            "UpsertView": "UpsertView2",
            "HistoryPage": "RunFullHistory",
            "SampledHistoryPage": "RunFullHistory",
            "RunSampledHistory": "RunFullHistory",
            "GetRun": "Run",
            "LightweightRun": "Run",
        }
        self.handlers.update({alias: self.handlers[name] for alias, name in aliases.items()})

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.store.operations.append(operation)
        if operation not in self.handlers:
            self.store.unknown.append(operation)
            raise Refused(f"unknown operation {operation}")
        return self.handlers[operation](variables)

    def on_Viewer(self, v):
        return {
            "viewer": {
                "id": encoded("User:1"),
                "entity": ENTITY,
                "username": ENTITY,
                "email": "x@localhost",
                "flags": "{}",
                "admin": False,
                "name": ENTITY,
                "deletedAt": None,
                "teams": {"edges": [{"node": {"name": ENTITY}}]},
                "apiKeys": {"edges": []},
            }
        }

    def on_UpsertBucket(self, v):
        if v.get("id") and not v.get("name"):
            run, inserted = next((run for run in self.store.runs.values() if run.id == v["id"]), None), False
            if run is None:
                raise Refused("no such run", 404)
        else:
            run, inserted = self._run_to_write(v)
        for key, name in {
            "displayName": "display_name",
            "groupName": "group",
            "jobType": "job_type",
            "notes": "notes",
            "tags": "tags",
            "sweep": "sweep",
            "commit": "commit",
            "state": "state",
        }.items():
            if v.get(key) is not None:
                setattr(run, name, v[key])
        if v.get("config"):
            run.config = json.loads(v["config"])
        if v.get("summaryMetrics"):
            run.summary = json.loads(v["summaryMetrics"])
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def _run_to_write(self, v) -> tuple[Run, bool]:
        entity, project, name = v.get("entity") or ENTITY, v.get("project") or "uncategorized", v["name"]
        if entity not in self.store.entities:
            raise Refused(f"entity {entity} not found during upsertBucket", 404)
        if name in self.store.deleted:
            raise Refused(
                f"run {entity}/{project}/{name} was previously created and deleted; try a new run name", 409
            )
        inserted = (entity, project, name) not in self.store.runs
        if inserted:
            self.store.creations.append(time.monotonic())
        return self.store.runs.setdefault((entity, project, name), Run(entity, project, name)), inserted

    def _bucket(self, run: Run) -> dict[str, Any]:
        return {
            "id": run.id,
            "name": run.name,
            "displayName": run.display_name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": run.sweep,
            "historyLineCount": run.count(HISTORY),
            "project": {
                "id": encoded(run.project),
                "name": run.project,
                "entity": {"id": encoded(run.entity), "name": run.entity},
            },
        }

    def on_RunResumeStatus(self, v):
        entity, project = v.get("entity") or ENTITY, v.get("project") or "uncategorized"
        run = self.store.runs.get((entity, project, v.get("name")))
        telemetry = {} if run is None else run.config.get("_wandb", {}).get("value", {}).get("t", {})
        bucket = (
            None
            if run is None
            else {
                "id": run.id,
                "name": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.display_name,
                "logLineCount": run.count("output.log"),
                "historyLineCount": run.count(HISTORY),
                "eventsLineCount": run.count("wandb-events.jsonl"),
                "historyTail": run.tail(HISTORY),
                "eventsTail": run.tail("wandb-events.jsonl"),
                "config": json.dumps(run.config),
                "tags": run.tags,
                "notes": run.notes,
                "wandbConfig": json.dumps({"t": telemetry}),
            }
        )
        return {
            "model": {
                "id": encoded(project),
                "name": project,
                "entity": {"id": encoded(entity), "name": entity},
                "bucket": bucket,
            }
        }

    def on_CreateRunFiles(self, v):
        base = f"{self.base_url}/upload/{v.get('entity')}/{v.get('project')}/{v.get('run')}/"
        return {
            "createRunFiles": {
                "runID": "x",
                "uploadHeaders": [],
                "files": [{"name": name, "uploadUrl": base + name} for name in v.get("files", [])],
            }
        }

    def _node(self, run: Run) -> dict[str, Any]:
        last = run.history[-1]["_step"] if run.history else -1
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.created))
        return {
            "id": run.id,
            "tags": run.tags,
            "name": run.name,
            "displayName": run.display_name,
            "sweepName": run.sweep,
            "state": run.state,
            "config": json.dumps(run.config),
            "group": run.group,
            "jobType": run.job_type,
            "commit": run.commit,
            "readOnly": False,
            "createdAt": created,
            "heartbeatAt": created,
            "description": None,
            "notes": run.notes,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": run.count(HISTORY),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {"keys": {}, "lastStep": last, "sets": []},
            "projectId": "1",
        }

    def on_Run(self, v):
        run = self.store.runs.get((v["entity"], v["project"], v["name"]))
        return {"project": {"run": None if run is None else self._node(run)}}

    on_RunHistoryKeys = on_Run
    on_RunState = on_Run

    def on_Runs(self, v):
        if not any(key[:2] == (v["entity"], v["project"]) for key in self.store.runs):
            return {"project": None}
        wanted = json.loads(v.get("filters") or "{}")
        found = [
            run
            for key, run in self.store.runs.items()
            if key[:2] == (v["entity"], v["project"]) and matches(run, wanted)
        ]
        edges = [{"node": self._node(run), "cursor": str(index)} for index, run in enumerate(found)]
        return {
            "project": {
                "internalId": "1",
                "runCount": len(found),
                "readOnly": False,
                "runs": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}},
            }
        }

    def on_RunFullHistory(self, v):
        run = self.store.runs[v["entity"], v["project"], v.get("name") or v.get("run")]
        rows = [row for row in run.history if v.get("minStep", 0) <= row["_step"] < v.get("maxStep", 10**9)]
        return {"project": {"run": {"history": [json.dumps(row) for row in rows], "sampledHistory": [rows]}}}

    def on_CreateArtifact(self, v):
        name = encoded(f"Artifact:{len(self.store.artifacts) + 1}")
        self.store.artifacts[name] = {**v["input"], "files": {}}
        return {
            "createArtifact": {
                "artifact": {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            }
        }

    def on_CreateArtifactManifest(self, v):
        url = f"{self.base_url}/upload/artifacts/{v['artifactID']}/{v['name']}"
        return {
            "createArtifactManifest": {
                "artifactManifest": {
                    "id": encoded("Manifest"),
                    "file": {"id": encoded("f"), "uploadHeaders": [], "uploadUrl": url},
                }
            }
        }

    def on_UpdateArtifactManifest(self, v):
        return {
            "updateArtifactManifest": {
                "artifactManifest": {
                    "id": encoded("Manifest"),
                    "file": {
                        "id": encoded("f"),
                        "uploadHeaders": [],
                        "uploadUrl": f"{self.base_url}/upload/artifacts/manifest.json",
                    },
                }
            }
        }

    def on_CreateArtifactFiles(self, v):
        specs = v.get("artifactFiles") or v["input"]["artifactFiles"]
        edges = [
            {
                "node": {
                    "storagePath": "sp/" + spec["name"],
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "uploadUrl": f"{self.base_url}/upload/artifacts/{spec['artifactID']}/{spec['name']}",
                    "artifact": {"id": spec["artifactID"]},
                }
            }
            for spec in specs
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, v):
        self.store.artifacts[v["artifactID"]]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": "d"}}}

    def on_UpsertSweep(self, v):
        name = v.get("id") or f"sw{len(self.store.sweeps) + 1}"
        self.store.sweeps[name] = v
        project = {
            "id": encoded("P"),
            "name": v.get("projectName"),
            "entity": {"id": encoded("E"), "name": v.get("entityName") or ENTITY},
        }
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def on_UpsertView2(self, v):
        name = v.get("id") or encoded(f"View:{len(self.store.views) + 1}")
        inserted = name not in self.store.views
        self.store.views[name] = {**self.store.views.get(name, {}), **v, "id": name}
        return {"upsertView": {"view": self._view(self.store.views[name]), "inserted": inserted}}

    def _view(self, view) -> dict[str, Any]:
        return {
            "id": view["id"],
            "name": view.get("name"),
            "displayName": view.get("displayName"),
            "type": view.get("type"),
            "description": view.get("description") or "",
            "spec": view.get("spec"),
            "locked": False,
            "updatedAt": "2026-01-01T00:00:00Z",
            "createdAt": "2026-01-01T00:00:00Z",
            "project": {"name": view.get("projectName"), "entityName": view.get("entityName"), "id": "x"},
            "user": {"username": ENTITY, "photoUrl": None, "name": ENTITY},
        }

    def on_CreateCustomChart(self, v):
        self.store.charts.append(v)
        return {"createCustomChart": {"chart": {"id": encoded("Chart")}}}

    def on_GetProjects(self, v):
        names = sorted({key[1] for key in self.store.runs})
        edges = [
            {
                "node": {
                    "__typename": "Project",
                    "id": encoded(name),
                    "name": name,
                    "entityName": ENTITY,
                    "createdAt": "2026-01-01T00:00:00Z",
                    "isBenchmark": False,
                    "user": self.on_Viewer(v)["viewer"],
                }
            }
            for name in names
        ]
        return {
            "models": {
                "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
                "edges": edges,
            }
        }

    def on_UpsertModel(self, v):
        return {"upsertModel": {"project": {"id": encoded("P"), "name": v.get("name")}, "inserted": True}}

    def on_ProjectInternalId(self, v):
        return {"project": {"id": encoded("P"), "internalId": "1"}}

    def on_GetProject(self, v):
        return {
            "project": {"id": encoded("P"), "internalId": "1", "name": v.get("name"), "entityName": ENTITY}
        }

    def on_ServerInfo(self, v):
        return {
            "serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None}
        }

    def on_ServerFeaturesQuery(self, v):
        return {"serverInfo": {"features": []}}

    def on_RunStoppedStatus(self, v):
        return {"project": {"run": {"stopped": False}}}

    def on_MarkRunFilesUploaded(self, v):
        return {"markRunFilesUploaded": {"success": True}}

    def on_FetchOrgEntityFromEntity(self, v):
        return {"entity": {"organization": None}}

    on_OrganizationCoreWeaveOrganizationID = on_FetchOrgEntityFromEntity

    def on_ArtifactType(self, v):
        return {"project": {"artifactType": None}}

    def on_OrgFeatureFlags(self, v):
        return {"organization": None}

    def on_ClientIDMapping(self, v):
        return {"clientIDMapping": None}


def matches(run: Run, wanted: dict[str, Any]) -> bool:
    """The part of W&B's filter language that is asked for here."""
    for key, value in wanted.items():
        if key == "$or":
            if not any(matches(run, part) for part in value):
                return False
        elif key == "$and":
            if not all(matches(run, part) for part in value):
                return False
        else:
            have = {"group": run.group, "tags": run.tags, "name": run.name, "jobType": run.job_type}[key]
            options = value["$in"] if isinstance(value, dict) else [value]
            if not any(option in have if isinstance(have, list) else option == have for option in options):
                return False
    return True
