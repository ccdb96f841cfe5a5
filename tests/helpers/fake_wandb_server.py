"""A W&B server on 127.0.0.1 that speaks just enough for a run to start and to upload."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "VXNlcjox", "entity": "someone", "username": "someone", "flags": "{}"}
STARTED = '{"t": {}, "epochs": {"value": 1}}'  # by which W&B tells that a run has begun
PROJECT = {"id": "UDox", "name": "project", "entity": {"id": "RTox", "name": "someone"}}


class FakeServer:
    """Answers until `stop`. `rows` are the history rows that were uploaded to all runs, `reply` is
    the answer to every query, where it is not empty."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.reply: dict[str, Any] = {}
        self.bucket: dict[str, Any] | None = None
        self.run_names: set[str] = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                self._answer(fake.answer(self.path, json.loads(body or "{}")))

            def _answer(self, content: Any) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path: str, content: dict[str, Any]) -> Any:
        if path.endswith("/file_stream"):
            sent = content.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows += [json.loads(line) for line in sent]
            return {}
        if self.reply:
            return self.reply
        query = content.get("query", "")
        if "viewer" in query:
            return {"data": {"viewer": VIEWER}}
        if "RunResumeStatus" in query:
            return {"data": {"model": PROJECT | {"bucket": self.resume_status()}}}
        if "upsertBucket" in query:
            name = content["variables"]["name"]
            self.run_names.add(name)
            self.bucket = {"id": "UjE=", "name": name, "displayName": name, "project": PROJECT}
            self.bucket |= {"config": "{}", "historyLineCount": len(self.rows), "sweepName": None}
            return {"data": {"upsertBucket": {"bucket": self.bucket, "inserted": True}}}
        if "createRunFiles" in query:
            files = {"runID": "UjE=", "uploadHeaders": [], "files": []}
            return {"data": {"createRunFiles": files}}
        return {"data": {}}

    def resume_status(self) -> dict[str, Any] | None:
        """How far the run got, for one that continues it; None before it began."""
        if self.bucket is None:
            return None
        tail = [json.dumps(row) for row in self.rows[-1:]]
        status = {"historyLineCount": len(self.rows), "historyTail": json.dumps(tail)}
        status |= {"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]"}
        status |= {"summaryMetrics": "{}", "tags": [], "notes": "", "wandbConfig": STARTED}
        return self.bucket | status

    def stop(self) -> None:
        self._server.shutdown()
        self._server.socket.close()
