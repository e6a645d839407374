"""A web server that misbehaves on demand."""

import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves ``pages``: path -> function of the request handler; counts what was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.hits, self.closing = {}, Counter(), threading.Event()

    def serve(self, path, page):
        self.pages[path] = page
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        """A client that goes away in the middle is what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.hits[self.path] += 1
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
        else:
            page(self)

    def announce(self, size):
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *args):
        pass


def whole(body):
    def page(handler):
        handler.announce(len(body))
        handler.wfile.write(body)

    return page


def cut_in_the_middle(body):
    def page(handler):
        handler.announce(len(body))
        handler.wfile.write(body[: len(body) // 2])

    return page


def falls_silent(body):
    """Sends half and then nothing, until the test is over."""

    def page(handler):
        handler.announce(len(body))
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        handler.server.closing.wait(30)

    return page


def drips(body):
    def page(handler):
        handler.announce(len(body))
        for start in range(0, len(body), 4096):
            handler.wfile.write(body[start : start + 4096])
            handler.wfile.flush()
            if handler.server.closing.wait(0.1):
                return

    return page


def in_turn(*pages):
    """Each request gets the next page, the later ones the last."""
    remaining = list(pages)

    def page(handler):
        (remaining.pop(0) if len(remaining) > 1 else remaining[0])(handler)

    return page


def sha256(data):
    return hashlib.sha256(data).hexdigest()
