#!/usr/bin/env python3
"""2,000 requests from 16 clients against `uniattn serve`: whole, streamed, cancelled and malformed ones.

    .venv/bin/python scripts/soak_serve.py --model DIR [--requests 2000] [--clients 16]

Starts the server, reports its resident memory after the first quarter of the requests and at the end, and fails when any whole
answer differs from the first one, or when a place is not given back.
"""

import argparse
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

PROMPT = {"prompt": [5, 6, 7, 8, 9, 10], "max_tokens": 30, "temperature": 0}


class Soak:
    def __init__(self, port: int, requests: int):
        self.port, self.left, self.counts, self.expected = port, requests, Counter(), None
        self.lock = threading.Lock()

    def post(self, body: bytes, read: bool = True) -> bytes:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(head.encode() + body)
            received = b""
            while read and (part := connection.recv(65536)):
                received += part
            if not read:
                connection.recv(10)  # the answer has begun
            return received

    def whole(self) -> str:
        answer = self.post(json.dumps(PROMPT).encode())
        if answer.startswith(b"HTTP/1.1 429"):
            return "refused"
        text = answer[answer.index(b'"choices"') : answer.index(b'"usage"')]
        with self.lock:
            self.expected = self.expected or text
        return "whole" if text == self.expected else "WRONG"

    def streamed(self) -> str:
        answer = self.post(json.dumps(PROMPT | {"stream": True}).encode())
        return "streamed" if answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") else "refused" if b" 429 " in answer[:20] else "BROKEN"

    def cancelled(self) -> str:
        self.post(json.dumps(PROMPT | {"stream": random.random() < 0.5, "max_tokens": 400}).encode(), read=False)
        return "cancelled"

    def malformed(self) -> str:
        body = random.choice([b"{", b"[]", b'{"prompt": 5}', b'{"prompt": [99999999]}', b"\xff\xfe", b'{"messages": []}'])
        return "malformed" if b" 400 " in self.post(body)[:20] else "NOT REFUSED"

    def work(self) -> None:
        while True:
            with self.lock:
                if self.left == 0:
                    return
                self.left -= 1
            kind = random.choices([self.whole, self.streamed, self.cancelled, self.malformed], [5, 3, 1, 1])[0]
            outcome = kind()
            with self.lock:
                self.counts[outcome] += 1


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def start(args: argparse.Namespace) -> tuple[subprocess.Popen, int]:
    command = [str(args.binary), "serve", "--model", str(args.model), "--port", "0", "--max-length", "500"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "http://" in line:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(line.split("http://")[1].split("/")[0].split(":")[1])
    sys.exit(f"the server ended with {process.wait()}")


def idle(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while part := connection.recv(65536):
            received += part
    status = json.loads(received.split(b"\r\n\r\n", 1)[1])
    return status["running"] == status["waiting"] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--binary", type=Path, default=Path("build/release/uniattn"))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    process, port = start(args)
    counts, memory, begin = Counter(), [], time.perf_counter()
    for requests in (args.requests // 4, args.requests - args.requests // 4):
        soak = Soak(port, requests)
        clients = [threading.Thread(target=soak.work) for _ in range(args.clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        for _ in range(100):
            if idle(port):
                break
            time.sleep(0.1)
        else:
            sys.exit("the server still works 10 s after the last request")
        counts += soak.counts
        memory.append(resident_kib(process.pid))
    process.terminate()
    code = process.wait(timeout=30)
    print(f"{dict(counts)} in {time.perf_counter() - begin:.1f} s, exit code {code}")
    print(f"resident after {args.requests // 4} requests: {memory[0]:,} KiB, after {args.requests}: {memory[1]:,} KiB")
    if code or {"WRONG", "BROKEN", "NOT REFUSED"} & set(counts):
        sys.exit(1)


if __name__ == "__main__":
    main()
