"""Environments of simulator servers over HTTP, under the names that Bench2Drive's users know.

One environment belongs to one address, as with Bench2Drive's services: a server that was started with
``--simulator`` and ``--task`` holds it. The simulator need not be CARLA. It needs the extra ``trainers``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Sequence

from gymnasium.vector import AutoresetMode

from robowire.client.http_simulator_client import HttpSimulatorClient
from robowire.integrations.remote_env import RemoteEnv
from robowire.integrations.remote_vector_env import RemoteVectorEnv

if TYPE_CHECKING:
    import ssl

__all__ = ["CarlaEnv", "VectorizedCarlaEnv"]

# Steer, throttle, brake, as Bench2Drive bounds them.
_DRIVING_LOW, _DRIVING_HIGH = (-1.0, -1.0, 0.0), (1.0, 1.0, 1.0)
_DRIVING = ("carla", "highway")


class CarlaEnv(RemoteEnv):
    """An environment of a simulator server's HTTP port.

    It is the server's own, which all its clients share; or, where ``simulator`` is given, a session that is
    begun here and ended by :meth:`close`. Spaces, ``info``, snapshots and what happens when the simulator is
    lost are those of :class:`robowire.integrations.remote_env.RemoteEnv`.

    Args:
        server_url: Address of the HTTP port: ``http://localhost:8080``.
        simulator: Simulator of a session of one's own; ``None`` uses the server's environment.
        task: Task; ``None`` means the one that the server was started with, or that ``simulator`` names.
        render_mode: ``"rgb_array"`` or ``None``.
        render_camera: Camera of :meth:`render`; ``None`` means the simulator's best view for people.
        action_low: Bounds of the action space: one number, or ``action_dim``. By default those of steer,
            throttle and brake where the simulator drives a car, else -1.
        action_high: The same; else 1.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait for a reply; longer than the server's own limits.
        token: Token shown to the server, where it wants one.
        tls: Context for ``https``.
        ca: PEM file of the certificates to trust, in the place of the system's.
        tls_cert: PEM file of the client's own certificate, where the server asks for one.
        tls_key: PEM file of its private key.
        wait_s: Seconds that the first connection is tried for while the server does not answer.
        **task_options: Options of how the task is built.

    Raises:
        ConfigurationError: ``server_url`` is not an address, or an observation is not an array of numbers.
        RobowireError: What :class:`robowire.client.http_simulator_client.HttpSimulatorClient` raises.
    """

    def __init__(
        self,
        server_url: str,
        *,
        simulator: str | None = None,
        task: str | None = None,
        render_mode: str | None = None,
        render_camera: str | None = None,
        action_low: float | Sequence[float] | None = None,
        action_high: float | Sequence[float] | None = None,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 330.0,
        token: str | None = None,
        tls: bool | ssl.SSLContext = False,
        ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        wait_s: float = 0.0,
        **task_options: Any,
    ) -> None:
        client = HttpSimulatorClient(
            server_url,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            token=token,
            tls=tls,
            ca=ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            wait_s=wait_s,
        )
        self._open(
            client, simulator, task, task_options, render_mode=render_mode, render_camera=render_camera
        )
        drives = self.task_spec.simulator in _DRIVING and self.task_spec.action_dim == len(_DRIVING_LOW)
        default_low, default_high = (_DRIVING_LOW, _DRIVING_HIGH) if drives else (-1.0, 1.0)
        self._declare(
            default_low if action_low is None else action_low,
            default_high if action_high is None else action_high,
        )


class VectorizedCarlaEnv(RemoteVectorEnv):
    """Environments of several servers' HTTP ports, one each, which all work at the same time.

    Calls, infos and what happens when a session is lost are those of
    :class:`robowire.integrations.remote_vector_env.RemoteVectorEnv`.

    Args:
        server_urls: Addresses, such as those of a fleet: ``http://localhost:8080``, ``http://localhost:8081``.
        autoreset_mode: When an episode that ended is followed by the next one.
        render_mode: ``"rgb_array"`` or ``None``.
        **env_options: The other arguments of :class:`CarlaEnv`.

    Attributes:
        envs: The single environments, in the order of the addresses. Do not use them during a call.

    Raises:
        ValueError: There is no address; or one is named twice, and its one environment would be shared.
        ConfigurationError: The servers' tasks observe differently.
    """

    def __init__(
        self,
        server_urls: Sequence[str],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **env_options: Any,
    ) -> None:
        if isinstance(server_urls, str) or not server_urls:
            raise ValueError(f"server_urls is {server_urls!r}, expected a list of at least one address")
        if env_options.get("simulator") is None and len(set(server_urls)) < len(server_urls):
            raise ValueError("server_urls names an address twice, and a server has one environment")
        makers = [partial(CarlaEnv, url, render_mode=render_mode, **env_options) for url in server_urls]
        self._open(makers, autoreset_mode=autoreset_mode, render_mode=render_mode)
