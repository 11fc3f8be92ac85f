"""What the device's pipes give: 2^x on the special-function unit, fused multiply-adds, and copied bytes, each per second.

The two loops are PTX written here and loaded through the driver: nothing to compile, and nothing that could be folded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

CHAINS, UNROLL, LOOPS, THREADS, BLOCKS_PER_MULTIPROCESSOR = 8, 32, 512, 256, 8
_HEAD_START = 2_000_000  # clocks of the GPU: about a millisecond
INSTRUCTIONS = {"ex2": "ex2.approx.ftz.f32 %f{0}, %f{0};", "fma": "fma.rn.f32 %f{0}, %f{0}, %f8, %f9;"}


def least_seconds(call: Callable[[], None], repetitions: int = 20) -> float:
    """The least time of one call on the GPU by CUDA events, after two calls to warm up.

    The GPU is kept waiting while the call is enqueued: a picture's scan takes less time than Python takes to launch it.
    """
    call()
    call()
    times = []
    for _ in range(repetitions):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(_HEAD_START)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return min(times)


def copy_bandwidth(gibibytes: int = 1) -> float:
    """Bytes read plus bytes written per second by a device copy."""
    source = torch.randint(256, (gibibytes << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    return 2 * source.numel() / least_seconds(copy)


def instruction_rate(name: str) -> float:
    """Results (lanes, not warps) of ``ex2`` or ``fma`` per second on the whole device."""
    driver = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    torch.cuda.init()
    torch.cuda.current_stream().synchronize()  # makes the primary context current
    torch.zeros(1, device="cuda")
    _check(driver.cuModuleLoadData(ctypes.byref(module), _ptx(INSTRUCTIONS[name]).encode()), "cuModuleLoadData")
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, b"rate"), "cuModuleGetFunction")
    sink = torch.zeros(1, device="cuda")
    pointer, seed = ctypes.c_uint64(sink.data_ptr()), ctypes.c_float(0.5)
    addresses = (ctypes.c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(seed))
    blocks = BLOCKS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(0).multi_processor_count

    def launch() -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = driver.cuLaunchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, stream, addresses, None)
        _check(status, "cuLaunchKernel")

    try:
        return blocks * THREADS * LOOPS * UNROLL * CHAINS / least_seconds(launch)
    finally:
        driver.cuModuleUnload(module)


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"{what}: CUDA error {status}")


def _ptx(instruction: str) -> str:
    body = "\n".join(instruction.format(chain) for _ in range(UNROLL) for chain in range(CHAINS))
    start = "\n".join(f"add.f32 %f{chain}, %f8, 0f{0x3F800000 + chain:08X};" for chain in range(CHAINS))
    total = "\n".join(f"add.f32 %f0, %f0, %f{chain};" for chain in range(1, CHAINS))
    return f"""
.version 6.4
.target sm_75
.address_size 64
.visible .entry rate(.param .u64 sink, .param .f32 seed)
{{
.reg .f32 %f<10>;
.reg .b64 %rd<2>;
.reg .b32 %r<1>;
.reg .pred %p<2>;
ld.param.u64 %rd0, [sink];
ld.param.f32 %f8, [seed];
mov.f32 %f9, %f8;
{start}
mov.u32 %r0, 0;
LOOP:
{body}
add.u32 %r0, %r0, 1;
setp.lt.u32 %p0, %r0, {LOOPS};
@%p0 bra LOOP;
{total}
setp.eq.f32 %p1, %f0, 0f7149F2CA;
@%p1 st.global.f32 [%rd0], %f0;
ret;
}}
"""
