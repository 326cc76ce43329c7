"""Models on a hub: published with a card, loaded by their address, against an endpoint on this machine."""

import base64
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest

from pv_vae_jax import hub
from pv_vae_jax.model import Model, load, save
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.report.model_card import model_card
from pv_vae_jax.train.config_files import load_experiment, save_config
from pv_vae_jax.train.run import reopen_run
from pv_vae_jax.train.stages import check_stages
from pv_vae_jax.typing import ConfigError
from tests.test_cli import fails, pv_vae
from tests.test_warm_start import TINY as START
from tests.test_warm_start import begin, drawn, same


class Endpoint(BaseHTTPRequestHandler):
    """As much of the hub's interface as publishing and downloading a model needs."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # name -> revision -> file -> bytes
    created: dict[str, dict] = {}
    calls: list[str] = []

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.calls.append(f"POST {path}")
        owner_name = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            told = json.loads(body)
            name = "/".join(filter(None, (told.get("organization"), told["name"])))
            self.repositories.setdefault(name, {})
            self.created[name] = told
            return self.reply({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.reply({"files": files})
        if path.endswith("/commit/main"):
            if "refused" in owner_name:
                return self.reply({"error": "no right to write"}, 403)
            entries = [json.loads(line) for line in body.splitlines()]
            files = {e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"}
            revision = hashlib.sha1(body).hexdigest()
            self.repositories[owner_name][revision] = files
            place = f"http://{self.headers['Host']}/{owner_name}/commit/{revision}"
            return self.reply({"commitOid": revision, "commitUrl": place})
        return self.reply({}, 404)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        self.calls.append(f"{self.command} {self.path}")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        revisions = self.repositories.get(name)
        if not revisions:
            return self.reply({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        asked = parts[5] if parts[0] == "api" else parts[3]
        revision = list(revisions)[-1] if asked == "main" else asked
        if revision not in revisions:
            return self.reply({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = revisions[revision]
        if parts[0] == "api" and parts[4] == "revision":
            return self.reply({"id": name, "sha": revision, "siblings": [{"rfilename": f} for f in files]})
        if parts[0] == "api":  # tree
            oids = {f: hashlib.sha1(value).hexdigest() for f, value in files.items()}
            tree = [{"type": "file", "path": f, "size": len(files[f]), "oid": oids[f]} for f in files]
            return self.reply(tree)
        value = files["/".join(parts[4:])]
        told = {"ETag": f'"{hashlib.sha1(value).hexdigest()}"', "X-Repo-Commit": revision}
        return self.reply(value, 200, told)

    def reply(self, value, status: int = 200, headers: dict[str, str] | None = None):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """huggingface_hub talks to a server of this process, and keeps its files in a folder of the tests."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install -e '.[hub]'")
    import huggingface_hub.constants as constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        # Read from the environment when the library was imported, which another test may have done.
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
        patch.setenv("HF_TOKEN", "hf_of_the_tests")
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    """The folder of a model without a run."""
    network, params, _ = tiny
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(folder, Model(network, params, meta={"source": "somewhere"}))
    return folder


def test_a_model_is_published_and_comes_back_by_its_address(endpoint, model):
    call = ("publish", model, "me/tiny", "--license=apache-2.0", "--private", "--trained_on=films of cats")
    status, out, error = pv_vae(*call)
    assert status == 0, error
    address = out.splitlines()[-1]
    (revision,) = Endpoint.repositories["me/tiny"]
    assert address == f"hf://me/tiny@{revision}" and Endpoint.created["me/tiny"]["visibility"] == "private"
    own = load(model)
    for name in ("hf://me/tiny", address, Path("hf://me/tiny")):
        found = load(name)
        assert weights_hash(found.vae_params) == weights_hash(own.vae_params) and found.meta == own.meta
    assert not any("README" in call for call in Endpoint.calls if call.startswith("GET")), "what load does not read"
    card = Endpoint.repositories["me/tiny"][revision]["README.md"].decode()
    for words in ("license: apache-2.0", 'load("hf://me/tiny")', "films of cats", weights_hash(own.vae_params)):
        assert words in card, words
    assert "AutoencoderKLWan" not in card, "another network than Wan's"


def test_a_stage_starts_from_a_published_model(endpoint, tmp_path):
    params = drawn(START, 3)
    save(tmp_path / "model", Model(VAE(START), params))
    hub.upload(tmp_path / "model", "me/start")
    assert same(begin(tmp_path, init_from="hf://me/start"), params)
    run = reopen_run(tmp_path / "mine")
    check_stages(run, ["video"])
    video = dataclasses.replace(run.experiment.video, init_from="hf://me/nothing")
    run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, video=video))
    with pytest.raises(FileNotFoundError, match="no model at hf://me/nothing"):
        check_stages(run, ["video"])


def test_a_network_with_wans_layout_is_published_for_diffusers_as_well(tmp_path):
    config = VAEConfig.wan21()
    small = {"encoder_widths": (8, 8, 16, 16), "decoder_widths": (8, 8, 16, 16), "latent_channels": 4}
    model = VAE(VAEConfig(**(config.__dict__ | small)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 5, 16, 16, 3), np.float32))["params"]
    params = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
    save(tmp_path / "wan", Model(model, params, meta={"source": "somewhere"}))
    assert "say what it was trained on, --trained_on" in fails("publish", tmp_path / "wan", "me/wan")
    call = ("publish", tmp_path / "wan", "me/wan", "--trained_on=films of cats", "--out", tmp_path / "out")
    status, _, error = pv_vae(*call)
    assert status == 0, error
    card = (tmp_path / "out" / "README.md").read_text()
    assert "films of cats" in card and 'AutoencoderKLWan.from_pretrained("me/wan", subfolder="diffusers")' in card
    described = json.loads((tmp_path / "out" / "diffusers" / "config.json").read_text())
    assert described["_class_name"] == "AutoencoderKLWan" and described["z_dim"] == 4
    assert (tmp_path / "out" / "diffusers" / "diffusion_pytorch_model.safetensors").exists()
    assert "exists; name another folder" in fails(*call)


def test_a_card_tells_of_the_training_of_these_weights_alone(tiny, tmp_path):
    overrides = {"decoder.steps": "7", "video.init_from": "/far/models/wan22", "image.steps": "5", "video.steps": "6"}
    save_config(load_experiment("demo", overrides), tmp_path / "config.json")
    expected = {"image": ["image: 5"], "video": ["video: 6 wan22"], "decoder": ["video: 6 wan22", "decoder: 7"]}
    for stage, told in expected.items():
        card = model_card(Model(tiny[0], tiny[1], meta={"stage": stage}), "me/x", run=tmp_path)
        rows = re.findall(r"^\| stage (\w+) \| (\d+) steps, batches of \d+(?:, from (\S+))? \|$", card, re.M)
        assert [f"{name}: {steps} {start}".strip() for name, steps, start in rows] == told


def test_what_is_not_there_or_not_allowed_is_told(endpoint, model, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no model at hf://me/none: .*Compare the name with the model's page"):
        load("hf://me/none")
    hub.upload(model, "me/there")
    with pytest.raises(FileNotFoundError, match="no model at hf://me/there@v9"):
        load("hf://me/there@v9")
    for wrong in ("hf://me", "hf://me/a/b", "hf://me/a@"):
        with pytest.raises(ConfigError, match="expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION, got hf://me"):
            load(wrong)
    with monkeypatch.context() as patch:  # nobody listens; with this status launchers try again
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert "no model at hf://me/away: " in fails("sample", "--model=hf://me/away", status=1)
    for call in (("sample", "--model=hf://me/a..b"), ("publish", model, "me/-a", "--trained_on=x")):
        assert "expected OWNER/NAME as the hub allows it, got " in fails(*call, status=2)
    with pytest.raises(OSError, match="me/refused was not published: .*Log in with `hf auth login`"):
        hub.upload(model, "me/refused")
    assert "takes MODEL and OWNER/NAME, got" in fails("publish", model, "tiny")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub (the extra [hub] holds it)" in fails("sample", "--model=hf://me/there")


def test_the_environment_names_the_hub_and_its_cache(endpoint, model, tmp_path):
    """In a process of its own, as users have it; what was downloaded once needs no hub."""
    hub.upload(model, "me/cached")
    code = "import pv_vae_jax; print(pv_vae_jax.load('hf://me/cached').vae.config.latent_channels)"
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    channels = load(model).vae.config.latent_channels
    for port in (endpoint.server_port, 9):  # nobody listens at the second
        env["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
        assert done.stdout == f"{channels}\n", done.stderr
