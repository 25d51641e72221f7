"""Clients of GR00T's wire, in the environment of the peer; prints a JSON line for each thing they get.

    gr00t_client.py VERSION PORT OBSERVATIONS.npz ACTIONS.npz [FRONT WRIST]

VERSION is n1.5 for strands-robots' client, unmodified, n1.6 or n1.7 for clients written by the facts of the
wire, the last one with msgpack-numpy. OBSERVATIONS.npz holds ``front`` and ``wrist`` (n, H, W, 3), ``state``
(n, D). ACTIONS.npz gets ``chunks`` (n, steps, A), the parts joined in the order of the reply, and ``batch``
of all at once. FRONT and WRIST are the names of the views, those of the arrays by default.
"""

import io
import json
import sys
import warnings

import msgpack
import msgpack_numpy
import numpy as np
import zmq

TASK = "annotation.human.task_description"


def show(**fields):
    print(json.dumps(fields), flush=True)


def encode_n1_6(value):
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": buffer.getvalue()}
    return value


def decode_n1_6(value):
    if "__ModalityConfig_class__" in value:
        return value["as_json"]
    if "__ndarray_class__" in value:
        return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False)
    return value


def decode_n1_7(value):
    return msgpack_numpy.decode(decode_n1_6(value) if b"nd" not in value else value)


class Client:
    """N1.6's calls; N1.7 has the same ones and other arrays."""

    def __init__(self, version, port):
        self.encode = encode_n1_6 if version == "n1.6" else msgpack_numpy.encode
        self.decode = decode_n1_6 if version == "n1.6" else decode_n1_7
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.setsockopt(zmq.RCVTIMEO, 30_000)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def call(self, endpoint, **request):
        request = {"endpoint": endpoint, **request}
        self.socket.send(msgpack.packb(request, default=self.encode))
        reply = msgpack.unpackb(self.socket.recv(), object_hook=self.decode)
        if isinstance(reply, dict) and "error" in reply:
            raise RuntimeError("Server error: " + reply["error"])
        return reply

    def get_action(self, observation):
        actions, info = self.call("get_action", data={"observation": observation, "options": None})
        assert info == {}
        return actions


def nested(views, state):
    """One observation or many: arrays with the axis of a batch."""
    return {
        "video": {name: view[:, np.newaxis] for name, view in views.items()},
        "state": {"state": state[:, np.newaxis]},
        "language": {TASK: [["lift the cube"]] * len(state)},
    }


def joined(actions):
    return np.concatenate(list(actions.values()), axis=-1)


def run(version, port, observations, path, views):
    client = Client(version, port)
    show(ping=client.call("ping"))
    config = client.call("get_modality_config")
    show(config=config)
    assert client.call("reset", data={"options": None}) == {}
    views = {view: observations[name] for view, name in zip(views, ("front", "wrist"))}
    state = observations["state"]
    one = [
        client.get_action(nested({n: v[i : i + 1] for n, v in views.items()}, state[i : i + 1]))
        for i in range(len(state))
    ]
    every = client.get_action(nested(views, state))
    show(keys=list(every), dtypes=[str(value.dtype) for value in every.values()])
    dotted = {
        **{f"video.{name}": view[:, np.newaxis] for name, view in views.items()},
        "state.state": state[:, np.newaxis],
        TASK: ["lift the cube"] * len(state),
    }
    flat = client.get_action(dotted)
    show(flat=list(flat), same=bool(np.array_equal(joined(flat), joined(every))))
    for call in (
        lambda: client.call("kill"),
        lambda: client.call("get_action", data={"observation": {}, "options": None}),
    ):
        try:
            call()
        except RuntimeError as error:
            show(error=str(error))
    np.savez(path, chunks=np.concatenate([joined(actions) for actions in one]), batch=joined(every))


def run_strands(port, observations, path, views):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names the packages of robots that are not installed
        from strands_robots.policies.groot.client import GR00TClient

    client = GR00TClient("127.0.0.1", int(port))
    show(ping=client.ping())
    chunks = []
    for front, wrist, state in zip(observations["front"], observations["wrist"], observations["state"]):
        actions = client.get_action(
            {
                f"video.{views[0]}": front[np.newaxis],
                f"video.{views[1]}": wrist[np.newaxis],
                "state.state": state[np.newaxis],
                TASK: ["lift the cube"],
            }
        )
        chunks.append(joined(actions))
    show(keys=list(actions))
    try:
        client.get_action({f"video.{views[0]}": front[np.newaxis]})
    except RuntimeError as error:
        show(error=str(error))
    np.savez(path, chunks=np.stack(chunks))


def main(version, port, observations, path, *views):
    observations = np.load(observations)
    if version == "n1.5":
        run_strands(port, observations, path, views or ("front", "wrist"))
    else:
        run(version, port, observations, path, views or ("front", "wrist"))


main(*sys.argv[1:])
