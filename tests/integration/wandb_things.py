"""GraphQL operations of a W&B server that are not about runs: artifacts, views, charts, sweeps, itself."""

from typing import Any

from wandb_store import ENTITY, Store, encoded


class Things:
    """Mixed into `wandb_graphql.Graphql`."""

    store: Store
    base_url: str

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
        return {"project": {"artifact": None}}

    def on_OrgFeatureFlags(self, v):
        return {"organization": None}

    def on_ClientIDMapping(self, v):
        return {"clientIDMapping": None}
