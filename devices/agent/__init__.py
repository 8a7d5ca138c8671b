"""The program that runs where the model runs: it loads a file, checks it and times it.

Python 3.6 up, standard library and numpy only, nothing of edgevit: it travels to a device as one
file, ``agent-<hash>.pyz``, and this machine runs that very file too. One JSON line on stdin is the
job; stdin then stays open, and its end, or a line ``{"command": "stop"}``, ends the agent. Events
are JSON lines on stdout; everything that libraries print goes to stderr.

    facts        machine, Python, runtimes with versions, clock; emulated (why this is no real
                 machine, if that can be seen, else null); in mode "facts" also the conditions
    progress     id, stage ("waiting", "load", "check", "warm-up"): what is about to happen, and
                 "working" now and then while it takes long
    loaded       id, load_ns, first_ns, runtime, settings, region (what a timed region holds)
    checked      id, ok, outputs [name, ok, max_abs, scale, cosine], samples, reason
    conditions   when ("before", "after"), then one entry a probe that this machine has
    warmed       id, runs, ns, inner
    samples      id, round, inner, ns [per inference], finished (this subject has all it needs)
    memory       id, method, baseline_bytes, loaded_bytes, peak_bytes
    profile      id, method, resolution_ns, plain_ns and profiled_ns [of whole inferences, in
                 turns], ops [name, op, layer, takes and gives (shapes), inputs and outputs
                 (tensors), provider, ns (one a profiled inference)]
    peak         threads, flops and bytes [method, per_second (samples)]
    warning      id, kind, message
    error        id (null if it concerns the whole job), kind, message
    done         stopped

Subjects name a backend (``backends``) and give it options:

    onnxruntime   providers ("cpu", "cuda", "tensorrt" or names), fp16, engine_cache, optimization,
                  spinning
    tensorrt      fp16, workspace_mib; runs trtexec, which tells the times
    tflite        xnnpack
    openvino      precision ("f32", "bf16", "f16", null), pinning
    executorch    none
    coreml        compute_unit ("cpu", "gpu", "ane", "all")
    coreml-phone  compute_unit, device; an iPhone attached to this Mac, which tells the times
    torch         none

Where something else than this process runs the file, load_ns and first_ns are null if it does not
tell them, memory is an error of kind "unsupported", and if it runs on another device, conditions
are empty. Whatever was asked for one place and runs in another is a warning of kind "fallback", or
an error where nothing of it runs there.

A job names its mode: "facts", "check", "time", "memory", "profile" (of one subject) or "peak" (of
the machine), and may name its ``holder`` (user, pid
and command of the host's end), which others read who find the device busy. A file that is not the
one expected, or that computes something else than its golden outputs, is never timed.
"""

PROTOCOL = 1
AGENT_VERSION = "1.0"
