"""Error texts as they are met, and the sentence each becomes."""

from __future__ import annotations

import pytest

from anymix.device.faults import explain, sentence, whole

AUTOLOAD = (
    "RuntimeError: Failed to load the backend extension: torch_npu. You can disable extension auto-loading "
    "with TORCH_DEVICE_BACKEND_AUTOLOAD=0."
)
# What torch 2.13.0 with torch_npu 2.13.0 printed in a shell without CANN's set_env.sh, shortened.
NO_CANN = (
    'Traceback (most recent call last):\n  File "/x/torch_npu/npu/utils.py", line 8, in <module>\n'
    "    import torch_npu._C\n"
    "ImportError: libhccl.so: cannot open shared object file: No such file or directory\n"
    f"\nThe above exception was the direct cause of the following exception:\n\n{AUTOLOAD}\n"
)
TLS = (
    "ImportError: /env/lib/python3.11/site-packages/torch.libs/libgomp-98b21ff3.so.1.0.0: "
    "cannot allocate memory in static TLS block"
)


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (NO_CANN, "set_env.sh", "source "),
        (AUTOLOAD, "takes torch down", "TORCH_DEVICE_BACKEND_AUTOLOAD=0"),
        (
            TLS,
            "Arm",
            "export LD_PRELOAD=/env/lib/python3.11/site-packages/torch.libs/libgomp-98b21ff3.so.1.0.0",
        ),
        (
            "RuntimeError: operator torchvision::nms does not exist",
            "torchvision",
            "pip uninstall -y torchvision",
        ),
        (
            "ImportError: /x/torch_npu/lib/libtorch_npu.so: undefined symbol: _ZN3c104impl8GPUTrace",
            "built for another torch or another CANN",
            "doctor",
        ),
        (
            "RuntimeError: Two accelerators cannot be used at the same time in PyTorch: npu and cuda.",
            "CUDA build",
            "CPU",
        ),
        (
            "UserWarning: CUDA initialization: The NVIDIA driver on your system is too old (found 11040)",
            "driver",
            "IT",
        ),
        (  # vllm-ascend issue 405
            "[rank0]: EJ0003: [PID: 159] Failed to bind the IP port. Reason: The IP address and port have been bound "
            "already.\n host nic listen start failed, port[60000], return[11]",
            "same HCCL ports",
            "HCCL_IF_BASE_PORT",
        ),
        (  # vllm-ascend issue 486, LlamaFactory issue 5071
            "EI0006: 2024-08-05-18:15:21.270.506 Getting socket times out. Reason: Remote Rank did not send the data",
            "did not come in time",
            "HCCL_CONNECT_TIMEOUT",
        ),
        (  # vllm-ascend issue 4284
            "NPU function error: c10_npu::SetDevice(device_id_), error code is 507033\nE30006: Failed to "
            "verify the OPP",
            "kernels package",
            "ask IT",
        ),
        (  # Ascend/pytorch issue 67
            "c10_npu::SetDevice(device_id_), error code is 507033\n[Error]: Failed to start the device.",
            "does not start",
            "npu-smi info",
        ),
        (  # Ascend/pytorch issue 99
            "OSError: /usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_1/lib/libtbe_adapter.so: undefined symbol: _ZN3",
            "NNAL",
            "nnal/atb/set_env.sh",
        ),
        (  # vllm-ascend issue 152
            "ImportError: libatb.so: cannot open shared object file: No such file or directory",
            "NNAL",
            "nnal/atb/set_env.sh",
        ),
        (  # LlamaFactory issue 6309
            "msg_mgr_dump raise error[[Errno 28] No space left on device]",
            "disk is full",
            "df -h",
        ),
        (
            "OSError: libopenblas.so.0: cannot open shared object file: No such file",
            "libopenblas.so.0",
            "LD_LIBRARY_PATH",
        ),
    ],
)
def test_known_faults(text: str, what: str, fix: str) -> None:
    known = explain(text)
    assert known is not None
    assert what in known[0] and fix in known[1]
    assert "\n" not in sentence(text)


def test_an_unknown_error_is_given_in_its_own_words() -> None:
    text = "Traceback ...\n  File ...\nValueError: something new\n[ERROR] (PID:1) a trailer of the runtime"
    assert explain(text) is None
    assert sentence(text) == "ValueError: something new"
    assert sentence("") != ""


def test_the_cause_of_an_error_is_read_too() -> None:
    try:
        try:
            raise ImportError("libascendcl.so: cannot open shared object file: No such file or directory")
        except ImportError as cause:
            raise RuntimeError("Failed to load the backend extension: torch_npu.") from cause
    except RuntimeError as error:
        assert "set_env.sh" in sentence(whole(error))
