"""Any policy of lerobot 0.4 from a folder, run by lerobot's own code, its processors included.

It is run in lerobot's environment (``./setup_policy.sh lerobot``). A chunk is what ``predict_action_chunk``
and the folder's postprocessor make of an observation.

A policy that draws noise works on one row at a time, with torch's generator seeded by the observation's
episode seed and timestep, so that an answer depends on nothing else. One that looks at several observations
has sessions. LeRobot takes those of the last control steps; here a client may ask once for several steps, so
an earlier observation counts only where its timestep is the one before, and is else repeated, as LeRobot does
at the beginning of an episode.

One with LeRobot's real-time chunking (``lerobot.policies.rtc``, after arXiv 2506.07339) is guided towards the
prefix of an observation: fully for the first ``delay`` actions, less and less up to the execution horizon.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

# torchvision asks for these operators of its own library, which does not load with a torch for CPUs.
if torch.version.cuda is None:  # before lerobot is imported
    _operators: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, RTCAttentionSchedule
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.utils import populate_queues

from robowire.errors import ConfigurationError
from robowire.images import stack_images
from robowire.interfaces import EpisodeSession, PolicyOptions
from robowire.lerobot_names import lerobot_names
from robowire.meta import MetaObs
from robowire.registry import nearest
from robowire.specs import PolicySpec

__all__ = ["LeRobotOptions", "LeRobotPolicy", "LeRobotSessionPolicy", "make_policy"]

_STATE, _ACTION, _IMAGES, _IMAGE = "observation.state", "action", "observation.images", "observation.image"
_PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
_WEIGHTS = "model.safetensors"
# Features that lerobot adds for cameras which a robot does not have; it fills them itself.
_EMPTY_CAMERA = "observation.images.empty_camera_"

_TOKENIZER = "tokenizer_processor"

# These draw no noise. All others work on one row at a time.
_DETERMINISTIC = ("act",)
# These have lerobot's real-time chunking. pi0_fast has its settings too, but no sampling that they guide.
_GUIDED = ("smolvla", "pi0", "pi05")

Features = Mapping[str, Any]


@dataclass(frozen=True)
class LeRobotOptions:
    """What ``PolicyOptions.extra`` may hold.

    Attributes:
        seed: Of the noise, together with the seed of the episode and the timestep.
        ctrl_space: ``"ee"`` or ``"joint"``, what the actions are: a folder of LeRobot does not say.
        ctrl_type: ``"absolute"``, ``"relative"`` or ``"delta"``, likewise.
        control_hz: Actions per second, likewise.
        vlm_model_name: Folder, or name on the hub, of the vision-language model and tokenizer, in place of
            the one that the policy's folder names.
        rtc_execution_horizon: Steps over which real-time chunking guides towards the chunk before; 0 for no
            real-time chunking. This one and the next two are by default what the folder says, or lerobot's
            own default.
        rtc_max_guidance_weight: How strongly, at most.
        rtc_prefix_attention_schedule: How the weights decrease from ``delay`` to the horizon: ``"linear"``,
            ``"exp"``, ``"ones"`` (not at all) or ``"zeros"`` (at once).
    """

    seed: int = 0
    ctrl_space: str | None = None
    ctrl_type: str | None = None
    control_hz: float | None = None
    vlm_model_name: str | None = None
    rtc_execution_horizon: int | None = None
    rtc_max_guidance_weight: float | None = None
    rtc_prefix_attention_schedule: str | None = None


class LeRobotPolicy:
    """A policy of lerobot as a pure function of the latest observation.

    Args:
        policy: lerobot's policy.
        preprocess: Its pipeline from observations to the policy.
        postprocess: Its pipeline from the policy to actions.
        body: Fields of the spec that its folder does not say.
        seed: Of the noise.
        camera_names: Names for the cameras of its features, in their order.
        digest: Tells its files from others.
    """

    strided_images = True

    def __init__(
        self,
        policy: Any,
        preprocess: Any,
        postprocess: Any,
        *,
        body: Mapping[str, Any],
        seed: int,
        camera_names: tuple[str, ...] | None,
        digest: str,
    ) -> None:
        config = policy.config
        self._policy, self._preprocess, self._postprocess = policy, preprocess, postprocess
        self._seed = seed
        self.device = str(config.device)
        inputs = {
            name: feature
            for name, feature in config.input_features.items()
            if not name.startswith(_EMPTY_CAMERA)
        }
        self._cameras = [name for name, feature in inputs.items() if feature.type is FeatureType.VISUAL]
        self._has_state = _STATE in inputs
        self._draws = config.type not in _DETERMINISTIC
        self.max_batch_size = 1 if self._draws else 16
        self.history = int(getattr(config, "n_obs_steps", 1) or 1)
        self._repeats = int(getattr(config, "n_action_repeats", 1) or 1)
        self._queue_keys = set(getattr(policy, "_queues", None) or ()) - {_ACTION}
        sizes = {tuple(inputs[name].shape[1:]) for name in self._cameras}
        height, width = sizes.pop() if len(sizes) == 1 else (None, None)
        names = camera_names or tuple(name.rpartition(".")[2] for name in self._cameras)
        state_dim = inputs[_STATE].shape[0] if self._has_state else None
        action_dim = config.output_features[_ACTION].shape[0]
        blank = MetaObs(
            state=np.zeros(state_dim or 0, np.float32),
            image=np.zeros((len(self._cameras), 3, height or 224, width or 224), np.uint8),
            raw_lang="do it",
        )
        self._guided = config.type in _GUIDED and config.rtc_config is not None
        # Not every configuration says how long a chunk is.
        chunk_size, found_dim = self.infer([blank]).shape[1:]
        if found_dim != action_dim:
            raise ConfigurationError(
                f"the policy answers {found_dim} numbers, but its config.json says {action_dim}"
            )
        steps = getattr(config, "n_action_steps", None)
        self.spec = PolicySpec(
            policy=f"lerobot {config.type}",
            camera_names=names,
            image_height=height,
            image_width=width,
            state_dim=state_dim,
            action_dim=action_dim,
            chunk_size=chunk_size,
            n_action_steps=steps if isinstance(steps, int) and 1 <= steps <= chunk_size else None,
            checkpoint=digest,
            # The server averages, for each session, where lerobot does it in the policy's select_action.
            temporal_ensemble_coeff=getattr(config, "temporal_ensemble_coeff", None),
            rtc="guided" if self._guided else "none",
            rtc_max_delay_steps=0
            if not self._guided
            else min(config.rtc_config.execution_horizon, chunk_size),
            **body,
        )

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim); an earlier observation is the same again."""
        if self._draws:
            return np.concatenate([self.predict([self.features([row])], row) for row in observations])
        return self.predict([self.features(observations)], observations[0])

    def features(self, observations: Sequence[MetaObs]) -> Features:
        """Return the preprocessed features of a batch.

        ``action`` is there where the policy is guided by the prefix of the one observation: (1, n,
        action_dim), in the model's own space.
        """
        batch: dict[str, Any] = {"task": [observation.raw_lang for observation in observations]}
        if self._has_state:
            states = np.stack([np.asarray(observation.state, np.float32) for observation in observations])
            batch[_STATE] = torch.from_numpy(states)
        if self._cameras:
            images = torch.from_numpy(stack_images([np.asarray(o.image) for o in observations]))
            for index, name in enumerate(self._cameras):
                batch[name] = images[:, index].to(torch.float32) / 255
        left_over = self._left_over(observations[0])
        if left_over is not None and observations[0].prefix_raw is None:
            batch[_ACTION] = left_over[None]
        found = dict(self._preprocess(batch))
        # The pipeline adds an action of None, as a batch of demonstrations has one.
        given = found.pop(_ACTION, None)
        if left_over is not None:
            found[_ACTION] = left_over[None] if given is None else self._model_space(given)
        return found

    @torch.no_grad()
    def predict(self, steps: Sequence[Features], latest: MetaObs) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim).

        Args:
            steps: Preprocessed features of the latest observations, oldest first.
            latest: Whose timestep and episode seed the noise is a function of.
        """
        torch.manual_seed(self._noise_seed(latest))
        batch = dict(steps[-1])
        left_over = batch.pop(_ACTION, None)
        if self._queue_keys:
            self._policy.reset()
            for step in steps:
                batch = {**step, **self._combined(step)}
                self._policy._queues = populate_queues(self._policy._queues, batch)
        guidance = {}
        if left_over is not None:
            guidance = {"inference_delay": int(latest.delay), "prev_chunk_left_over": left_over}
        chunk = self._policy.predict_action_chunk(batch, **guidance)
        if self._policy.config.type == "tdmpc":  # (chunk, B, action_dim), unlike the others
            chunk = chunk.transpose(0, 1)
        if self._repeats > 1:  # TD-MPC then executes its first action several times
            chunk = chunk[:, :1].expand(-1, self._repeats, -1)
        rows, length, dim = chunk.shape
        # The postprocessor takes one action of each row.
        actions = self._postprocess(chunk.reshape(rows * length, dim))
        numbers: np.ndarray = actions.to("cpu", torch.float32).numpy().reshape(rows, length, -1)
        return numbers

    def _combined(self, step: Features) -> Features:
        """Return the images as policies with queues name them."""
        combined: dict[str, Any] = {}
        if _IMAGES in self._queue_keys and self._cameras:
            combined[_IMAGES] = torch.stack([step[name] for name in self._cameras], dim=-4)
        if _IMAGE in self._queue_keys and self._cameras:
            combined[_IMAGE] = step[self._cameras[0]]
        return combined

    def _left_over(self, observation: MetaObs) -> torch.Tensor | None:
        """Return the actions that guide the chunk, (n, action_dim), as they were sent; ``None`` without any.

        Those behind ``delay`` count too, up to the first that is not finite.
        """
        given = observation.prefix if observation.prefix_raw is None else observation.prefix_raw
        if not self._guided or given is None or observation.delay is None:
            return None
        rows = np.array(given[: self._policy.config.chunk_size], np.float32)
        finite = np.isfinite(rows).all(axis=1)
        count = len(rows) if finite.all() else int(finite.argmin())
        return torch.from_numpy(rows[:count]).to(self.device) if count else None

    def _model_space(self, actions: torch.Tensor) -> torch.Tensor:
        """Return normalised actions as the network has them."""
        if getattr(self._policy.config, "adapt_to_pi_aloha", False):
            changed: torch.Tensor = self._policy._pi_aloha_encode_actions_inv(actions.clone())
            return changed
        return actions

    def _noise_seed(self, latest: MetaObs) -> int:
        episode = getattr(latest, "episode_seed", None)
        text = f"{self._seed} {episode} {np.asarray(latest.timestep).reshape(-1).tolist()}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class LeRobotSessionPolicy(LeRobotPolicy):
    """One whose policy looks at the observations of several steps: it has sessions, which keep them."""

    stateful = True

    def open_session(self) -> EpisodeSession:
        """Return a new session."""
        return _Session(self)


class _Session:
    def __init__(self, policy: LeRobotSessionPolicy) -> None:
        self._policy = policy
        self._rows: dict[int, deque[tuple[int, Features]]] = {}

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        return np.concatenate([self._row(number, row) for number, row in enumerate(observations)])

    def reset(self) -> None:
        self._rows.clear()

    def close(self) -> None:
        self._rows.clear()

    def _row(self, number: int, observation: MetaObs) -> np.ndarray:
        timestep = int(np.asarray(observation.timestep).reshape(-1)[0])
        kept = self._rows.setdefault(number, deque(maxlen=self._policy.history))
        # One that says no timestep is taken for the next one; -1 before -1 too.
        if kept and timestep not in (-1, kept[-1][0] + 1):
            kept.clear()
        kept.append((timestep, self._policy.features([observation])))
        return self._policy.predict([features for _, features in kept], observation)


def make_policy(options: PolicyOptions) -> LeRobotPolicy:
    """Return the policy of a folder; ``options.extra`` may hold fields of :class:`LeRobotOptions`.

    Raises:
        ConfigurationError: The folder is none of lerobot's, is broken, or needs what is not supported; the
            message names it.
    """
    if options.model_name_or_path is None:
        raise ConfigurationError("policy 'lerobot' needs a folder: --model_name_or_path DIR")
    if options.dataset_id is not None:
        raise ConfigurationError("policy 'lerobot' has one set of statistics: leave out --dataset_id")
    known = [field.name for field in fields(LeRobotOptions)]
    for name in options.extra:
        if name not in known:
            raise ConfigurationError(
                f"policy 'lerobot' has no option {name!r}.{nearest(name, known)} Known: {', '.join(known)}"
            )
    extra = LeRobotOptions(**options.extra)
    folder = Path(options.model_name_or_path)
    _check_files(folder)
    try:
        config = PreTrainedConfig.from_pretrained(folder)
        config.device = _device(options.device)
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # its weights are in the folder: nothing is downloaded
        _check_config(folder, config)
        overrides = {"device_processor": {"device": config.device}, **_choose_vlm(folder, config, extra)}
        _choose_rtc(config, extra)
        policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
        preprocess, postprocess = make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides=overrides,
        )
    except ConfigurationError:
        raise
    except Exception as exc:  # draccus, torch, safetensors and hubs raise whatever they like
        raise ConfigurationError(f"lerobot cannot load {folder}: {type(exc).__name__}: {exc}"[:800]) from exc
    cameras = sum(
        feature.type is FeatureType.VISUAL and not name.startswith(_EMPTY_CAMERA)
        for name, feature in config.input_features.items()
    )
    if options.camera_names is not None and len(options.camera_names) != cameras:
        raise ConfigurationError(
            f"camera_names has {len(options.camera_names)} entries, but {folder} was trained with {cameras}"
        )
    kind = LeRobotSessionPolicy if (getattr(config, "n_obs_steps", 1) or 1) > 1 else LeRobotPolicy
    return kind(
        policy,
        preprocess,
        postprocess,
        body={
            "ctrl_space": extra.ctrl_space,
            "ctrl_type": extra.ctrl_type,
            "control_hz": extra.control_hz,
            **_declared(folder, config, extra.control_hz),
        },
        seed=extra.seed,
        camera_names=options.camera_names,
        digest=_digest(folder),
    )


def _declared(folder: Path, config: PreTrainedConfig, control_hz: float | None) -> dict[str, Any]:
    """Return the names of state and action and the rate, where the folder says them and no option does."""
    numbers = {"state": config.input_features.get(_STATE), "action": config.output_features.get(_ACTION)}
    dims = {kind: None if feature is None else feature.shape[0] for kind, feature in numbers.items()}
    found = lerobot_names(folder, json.loads((folder / "config.json").read_bytes()), dims)
    return found if control_hz is None else {**found, "control_hz": control_hz}


def _check_files(folder: Path) -> None:
    for name in ("config.json", _WEIGHTS, *_PROCESSORS):
        if not (folder / name).is_file():
            older = name in _PROCESSORS and (folder / _WEIGHTS).is_file()
            why = (
                ": lerobot wrote it before it had processors. Its ACT is served by --policy act; for others "
                "use lerobot's own migration of policies"
                if older
                else ", expected a folder that lerobot's save_pretrained wrote"
            )
            raise ConfigurationError(f"{folder} has no {name}{why}")
    for name in _PROCESSORS:
        try:
            steps = json.loads((folder / name).read_text())["steps"]
            classes = [step["class"] for step in steps if "registry_name" not in step]
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigurationError(f"{folder / name} is no pipeline of lerobot: {exc!r}") from exc
        if classes:
            # lerobot would import any module that the file names.
            raise ConfigurationError(
                f"{folder / name} has a step that is not lerobot's own, which is not run: {classes[0]!r}"
            )


def _check_config(folder: Path, config: Any) -> None:
    where = folder / "config.json"
    if not config.input_features or _ACTION not in (config.output_features or {}):
        raise ConfigurationError(f"{where} names no inputs, or no output 'action'")
    for name, feature in config.input_features.items():
        if feature.type is FeatureType.VISUAL:
            if feature.shape[0] != 3:
                raise ConfigurationError(f"{where}: {name} has shape {feature.shape}, expected (3, H, W)")
        elif name != _STATE:
            raise ConfigurationError(f"{where} needs {name!r}, which no observation here holds")


def _choose_vlm(folder: Path, config: Any, extra: LeRobotOptions) -> dict[str, dict[str, Any]]:
    """Write the chosen vision-language model into ``config``; return overrides of the preprocessor."""
    if extra.vlm_model_name is None:
        return {}
    names = [name for name in ("vlm_model_name", "tokenizer_name") if hasattr(config, name)]
    steps = json.loads((folder / _PROCESSORS[0]).read_text())["steps"]
    tokenizes = any(step.get("registry_name") == _TOKENIZER for step in steps)
    if not names and not tokenizes:
        raise ConfigurationError(f"vlm_model_name is given, but {config.type} in {folder} has no such model")
    for name in names:
        setattr(config, name, extra.vlm_model_name)
    return {_TOKENIZER: {"tokenizer_name": extra.vlm_model_name}} if tokenizes else {}


def _choose_rtc(config: Any, extra: LeRobotOptions) -> None:
    """Switch lerobot's real-time chunking on where the policy has it: without a prefix it changes nothing."""
    chosen = {
        name: getattr(extra, f"rtc_{name}")
        for name in ("execution_horizon", "max_guidance_weight", "prefix_attention_schedule")
        if getattr(extra, f"rtc_{name}") is not None
    }
    if config.type not in _GUIDED:
        if chosen:
            raise ConfigurationError(
                f"rtc_{next(iter(chosen))} is given, but {config.type} of lerobot has no real-time chunking"
            )
        return
    horizon = chosen.get("execution_horizon")
    if horizon == 0:
        config.rtc_config = None
        return
    if horizon is not None and not (isinstance(horizon, int) and horizon > 0):
        raise ConfigurationError(f"rtc_execution_horizon is {horizon!r}, expected 0 or more steps")
    schedule = chosen.get("prefix_attention_schedule")
    if schedule is not None:
        known = [item.value.lower() for item in RTCAttentionSchedule]
        if schedule not in known:
            raise ConfigurationError(
                f"rtc_prefix_attention_schedule is {schedule!r}, expected one of {', '.join(known)}"
            )
        chosen["prefix_attention_schedule"] = RTCAttentionSchedule(schedule.upper())
    found = RTCConfig() if config.rtc_config is None else config.rtc_config
    config.rtc_config = replace(found, enabled=True, **chosen)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device {name!r}: this torch sees no GPU; use --device cpu")
    return name


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(path.name.encode())
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:16]
