"""The rig's web service on Python: prints READY once it listens."""

import signal
import sys
from wsgiref.simple_server import make_server

import flask
import yaml

import store

app = flask.Flask(__name__)
with open("app.yaml", encoding="utf-8") as f:
    settings = yaml.safe_load(f)


@app.get("/")
def index():
    return flask.render_template("index.html", readings=store.all_readings())


@app.get("/healthz")
def healthz():
    return "ok\n"


@app.get("/spread")
def spread():
    import numpy  # large, and needed by this page only

    values = [r.value for r in store.all_readings()]
    return {"std": float(numpy.std(values))}


def main():
    store.open_store("sqlite://")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with make_server(settings["address"], settings["port"], app) as server:
        print("READY", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
