"""The GraphQL operations of wandb 0.31 and wandb-workspaces 0.4 on what a W&B server remembers.

Observed on the wire, not read from a specification: an operation nobody here answers is answered with GraphQL
errors at HTTP 200 and kept in `Store.unknown`, so that a new version of the client shows what it wants.
"""

import json
import time
from typing import Any

from wandb_store import ENTITY, HISTORY, Refused, Run, Store, encoded, matches
from wandb_things import Things


class Graphql(Things):
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
