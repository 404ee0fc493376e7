"""An HTTP server of the network of this folder: Python and numpy, nothing else. An example, not a product.

python serve.py [--host ADDRESS] [--port N] [--limit MIB] [--contexts N] [--threads N]

GET  /health    {"status": "ok", "variant": ..., "inputs": {name: [shape, type]}, "shapes": [{name: shape}]}
POST /predict   an .npy of the only input, or an .npz of all by name, of any number of samples; of a
                network that takes bytes (uint8, NHWC) also a JPEG or PNG, if Pillow is there. Answers
                {"outputs": [lists]}; with the header "Accept: application/octet-stream" an .npz.
"""

import argparse
import io
import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from run import DeployError, Program, arrays, open_program


class Refused(Exception):
    """A request that is not served: (status, why)."""


class Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a client may be silent
    program: Program
    limit: int

    def do_GET(self):
        if self.path != "/health":
            return self.answer(404, {"error": f"there is no {self.path}; GET /health, POST /predict"})
        inputs = {name: [list(shape), str(dtype)] for name, (shape, dtype) in self.program.inputs.items()}
        known = {"variant": self.program.variant, "inputs": inputs, "shapes": self.program.shapes}
        return self.answer(200, {"status": "ok", **known})

    def do_POST(self):
        try:
            outputs = self.program(self.feed(self.body()))
        except Refused as refused:
            status, why = refused.args
            return self.answer(status, {"error": why})
        except DeployError as error:
            return self.answer(400, {"error": str(error)})
        if "octet-stream" in self.headers.get("Accept", ""):
            file = io.BytesIO()
            named: dict = {f"output_{i}": array for i, array in enumerate(outputs)}
            np.savez(file, **named)
            return self.answer(200, file.getvalue())
        return self.answer(200, {"outputs": [array.tolist() for array in outputs]})

    def body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            self.close_connection = True
            raise Refused(411, "give a Content-Length")
        if int(length) > self.limit:
            self.close_connection = True  # it is not read
            raise Refused(413, f"{length} bytes are more than the {self.limit} that --limit allows")
        body = self.rfile.read(int(length))
        if self.path != "/predict":
            raise Refused(404, f"there is no {self.path}; GET /health, POST /predict")
        return body

    def feed(self, body: bytes):
        if self.headers.get("Content-Type", "").startswith("image/"):
            return self.picture(body)
        try:
            return arrays(io.BytesIO(body))
        except Exception as error:  # noqa: BLE001  # numpy raises many of a stranger's bytes
            raise Refused(400, f"the body is no .npy and no .npz: {error}") from None

    def picture(self, body: bytes):
        """A picture, stretched to what the network takes."""
        name, (shape, dtype) = next(iter(self.program.inputs.items()))
        bytes_in = dtype == np.uint8 and len(shape) == 4 and shape[3] in (1, 3)
        if len(self.program.inputs) > 1 or not bytes_in or self.program.layouts.get(name) != "NHWC":
            raise Refused(400, f"the network takes {dtype} {shape}, no picture; send an .npy")
        try:
            from PIL import Image
        except ImportError:
            raise Refused(501, "pictures need Pillow: pip install pillow") from None
        try:
            picture = Image.open(io.BytesIO(body)).convert("RGB" if shape[3] == 3 else "L")
        except Exception as error:  # noqa: BLE001  # Pillow raises many of a stranger's bytes
            raise Refused(400, f"the body is no picture: {error}") from None
        return np.asarray(picture.resize((shape[2], shape[1]))).reshape(1, *shape[1:])

    def answer(self, status: int, content) -> None:
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Nothing: whoever stands before it logs."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--limit", type=float, default=16, metavar="MIB", help="the largest body (16)")
    parser.add_argument("--contexts", type=int, help="calls at once; as many as keep the CPUs busy")
    parser.add_argument("--threads", type=int, default=1, help="of one call (1)")
    args = parser.parse_args()
    try:
        Handler.program = open_program(contexts=args.contexts, threads=args.threads)
        Handler.limit = int(args.limit * 2**20)
        server = ThreadingHTTPServer((args.host, args.port), Handler)
    except (DeployError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    server.daemon_threads = True  # a client that keeps its connection does not keep the server

    def end(*_):  # serve_forever, which runs in this thread, must not be waited for here
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    print(
        f"serving {Handler.program.variant or 'the network'} on {args.host}:{server.server_port}",
        flush=True,
    )
    with server:
        server.serve_forever()
    Handler.program.close()  # waits for the calls that run
    return 0


if __name__ == "__main__":
    sys.exit(main())
