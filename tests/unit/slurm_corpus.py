"""What dying workers leave behind: (class, SLURM's state, last lines).

slurm_logs.json holds real ones: jobs that suffered each fault on SLURM 22.05 with PyTorch, as they printed it, but for
paths. Below are further ones marked real, and wordings from the sources and issue trackers of PyTorch, NCCL and CUDA.
"""

import json
from pathlib import Path

_TRACE = 'Traceback (most recent call last):\n  File "train/loop.py", line 88, in train_model\n'
CORPUS = [
    # real: a step killed for its memory leaves the job FAILED
    (
        "host_oom",
        "FAILED",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of the "
        "step tasks "
        "have been OOM Killed.",
    ),
    (
        "host_oom",
        "FAILED",
        "slurmstepd: error: StepId=31.0 exceeded memory limit (464494592 > 314572800), being killed",
    ),
    (
        "host_oom",
        "OUT_OF_MEMORY",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some "
        "of the step "
        "tasks have been OOM Killed.",
    ),
    ("host_oom", "FAILED", "srun: error: c1: task 0: Out Of Memory"),
    ("host_oom", "FAILED", _TRACE + "MemoryError"),
    (
        "host_oom",
        "FAILED",
        _TRACE + "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. "
        "DefaultCPUAllocator: "
        "not enough memory: you tried to allocate 4096 bytes.",
    ),
    ("host_oom", "FAILED", "OSError: [Errno 12] Cannot allocate memory"),
    ("host_oom", "FAILED", "terminate called after throwing an instance of 'std::bad_alloc'"),
    (
        "host_oom",
        "FAILED",
        "slurmstepd: error: Job 88 exceeded memory limit (9000000 > 8000000), being killed",
    ),
    ("host_oom", "FAILED", "slurmstepd: error: Step 99.0 exceeded memory limit (123 > 100), being killed"),
    (
        "cuda_oom",
        "FAILED",
        _TRACE + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 "
        "GiB. GPU 0 has "
        "a total capacity of 79.11 GiB of which 1.12 GiB is free.",
    ),
    (
        "cuda_oom",
        "FAILED",
        _TRACE + "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
    ),
    ("cuda_oom", "FAILED", _TRACE + "RuntimeError: CUDA error: out of memory"),
    (
        "cuda_oom",
        "FAILED",
        _TRACE + "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ),
    ("cuda_oom", "FAILED", "OutOfMemoryError: CUDA out of memory."),
    ("cuda_oom", "CANCELLED by 1000", _TRACE + "torch.OutOfMemoryError: CUDA out of memory."),
    ("disk_full", "FAILED", _TRACE + "OSError: [Errno 28] No space left on device"),
    ("disk_full", "FAILED", _TRACE + "OSError: [Errno 122] Disk quota exceeded: 'checkpoint'"),
    (
        "disk_full",
        "FAILED",
        "safetensors_rust.SafetensorError: Error while serializing: I/O error: No "
        "space left on "
        "device (os error 28)",
    ),
    ("disk_full", "FAILED", "cp: error writing '/tmp/x': No space left on device"),
    ("disk_full", "FAILED", "slurmstepd: error: write: No space left on device"),
    ("disk_full", "FAILED", "wandb: ERROR Disk quota exceeded"),
    ("disk_full", "COMPLETED", "OSError: [Errno 28] No space left on device; embedded-p1 can be continued"),
    ("node_fail", "NODE_FAIL", ""),
    ("node_fail", "BOOT_FAIL", ""),
    (
        "node_fail",
        "NODE_FAIL",
        "slurmstepd: error: *** JOB 76 ON c2 CANCELLED AT 2026-11-20T15:00:01 "
        "DUE TO NODE "
        "FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
    ),
    (
        "node_fail",
        "CANCELLED",
        "slurmstepd: error: *** JOB 76 ON c2 CANCELLED AT 2026-11-20T15:00:01 "
        "DUE TO NODE "
        "FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
    ),
    ("node_fail", "FAILED", _TRACE + "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    (
        "node_fail",
        "FAILED",
        "[rank0]: torch.distributed.DistBackendError: NCCL error in: "
        "ProcessGroupNCCL.cpp:1970, "
        "unhandled system error, NCCL version 2.21.5 ncclSystemError",
    ),
    (
        "node_fail",
        "FAILED",
        "node17:123:456 [0] misc/socket.cc:50 NCCL WARN socketProgress: Connection closed by remote peer",
    ),
    (
        "node_fail",
        "FAILED",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting",
    ),
    ("node_fail", "FAILED", "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."),
    ("node_fail", "FAILED", "RuntimeError: No CUDA-capable device is detected"),
    ("node_fail", "FAILED", "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    ("node_fail", "FAILED", "OSError: [Errno 116] Stale file handle: 'plan.json'"),
    ("node_fail", "FAILED", "OSError: [Errno 5] Input/output error"),
    ("node_fail", "FAILED", "srun: error: Node failure on node17"),
    ("node_fail", "FAILED", "slurmstepd: error: Communication connection failure"),
    (
        "node_fail",
        "FAILED",
        "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu.",
    ),
    ("node_fail", "FAILED", "Xid 63: row remapping failure"),
    # real: what SLURM writes into a job's output when it preempts
    ("preempted", "PREEMPTED", ""),
    (
        "preempted",
        "PENDING",
        "slurmstepd: error: *** STEP 12.0 ON c1 CANCELLED AT 2026-11-20T15:08:00 DUE TO PREEMPTION ***",
    ),
    (
        "preempted",
        "CANCELLED",
        "slurmstepd: error: *** JOB 12 ON c1 CANCELLED AT 2026-11-20T15:08:00 DUE TO PREEMPTION ***",
    ),
    ("preempted", "FAILED", "srun: error: step 12.0 was preempted"),
    ("timeout", "TIMEOUT", ""),
    ("timeout", "DEADLINE", ""),
    (
        "timeout",
        "FAILED",
        "slurmstepd: error: *** JOB 14 ON g1 CANCELLED AT 2026-11-20T15:12:00 DUE TO TIME LIMIT ***",
    ),
    (
        "timeout",
        "CANCELLED",
        "slurmstepd: error: *** STEP 14.0 ON g1 CANCELLED AT 2026-11-20T15:12:00 DUE TO TIME LIMIT ***",
    ),
    ("timeout", "FAILED", "srun: Force Terminated job 14\nsrun: error: time limit exhausted for StepId=14.0"),
    ("cancelled", "CANCELLED by 1000", ""),
    ("cancelled", "CANCELLED", "srun: Job step aborted: Waiting up to 32 seconds for job step to finish."),
    # real
    (
        "cancelled",
        "CANCELLED",
        "slurmstepd: error: *** STEP 19.0 ON c1 CANCELLED AT 2026-11-20T15:10:00 "
        "***\nsrun: Job "
        "step aborted: Waiting up to 7 seconds for job step to finish.",
    ),
    ("nan_loss", "FAILED", "train.failures.NonFiniteLossError: the loss of step 12 is not finite; rows a, b"),
    ("nan_loss", "COMPLETED", "failed embedded-p1: nan_loss: the loss of step 3 is not finite; rows x"),
    # real: a configuration error in the worker's own first lines
    (
        "code",
        "FAILED",
        _TRACE + "train.errors.ConfigError: launcher.signal_delay_s=120 leaves no "
        "time\nsrun: error: c1: "
        "task 0: Exited with exit code 1",
    ),
    ("code", "FAILED", _TRACE + "ValueError: a learning rate too small for a toy"),
    ("code", "FAILED", _TRACE + "ModuleNotFoundError: No module named 'torch'"),
    ("code", "FAILED", _TRACE + "KeyError: 'input_ids'"),
    ("code", "FAILED", _TRACE + "RuntimeError: The size of tensor a (4) must match the size of tensor b (5)"),
    ("code", "FAILED", _TRACE + "ImportError: libcudart.so.12: cannot open shared object file"),
    # real: SIGKILL of the worker, from outside
    ("killed", "FAILED", "srun: error: c1: task 0: Killed"),
    ("killed", "FAILED", "srun: error: g2: task 0: Segmentation fault"),
    ("killed", "FAILED", ""),
    ("killed", "COMPLETED", "job c2db9ec314e243d5:19_0.0 on c1, 240.0 min"),
    ("killed", "FAILED", "srun: error: c2: task 0: Aborted (core dumped)"),
    # PyTorch
    (
        "cuda_oom",
        "FAILED",
        _TRACE
        + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "79.15 GiB of which 1.06 GiB is free. Process 12345 has 78.08 GiB memory in use. Of the allocated memory 75.21 "
        "GiB is allocated by PyTorch, and 2.12 GiB is reserved by PyTorch but unallocated. If reserved but unallocated "
        "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.",
    ),
    (
        "cuda_oom",
        "FAILED",
        _TRACE
        + "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 7.79 GiB total capacity; 6.20 "
        "GiB already allocated; 15.38 MiB free; 6.22 GiB reserved in total by PyTorch)",
    ),
    ("code", "FAILED", _TRACE + "RuntimeError: CUDA error: an illegal memory access was encountered"),
    ("code", "FAILED", _TRACE + "RuntimeError: CUDA error: device-side assert triggered"),
    ("code", "FAILED", _TRACE + "RuntimeError: CUDA error: invalid device ordinal"),
    (
        "code",
        "FAILED",
        _TRACE + "RuntimeError: Found no NVIDIA driver on your system. Please check that you have one",
    ),
    (
        "node_fail",
        "FAILED",
        _TRACE
        + "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
        "calling NumCudaDevices() that might have already set an error? Error 802: system not yet initialized",
    ),
    # NCCL
    (
        "node_fail",
        "FAILED",
        _TRACE
        + "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp"
        ":1331, internal error - please report this issue to the NCCL developers, NCCL version 2.18.1\n"
        "ncclInternalError: Internal check failed.",
    ),
    (
        "node_fail",
        "FAILED",
        "[E ProcessGroupNCCL.cpp:475] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType="
        "ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=1800000) ran for 1800293 milliseconds before timing out.",
    ),
    ("node_fail", "FAILED", _TRACE + "RuntimeError: NCCL communicator was aborted on rank 1."),
    # the driver
    ("node_fail", "FAILED", "NVRM: Xid (PCI:0000:b1:00): 48, pid=12345, name=python, Double Bit ECC Error"),
    ("node_fail", "FAILED", "Unable to determine the device handle for GPU 0000:B1:00.0: Unknown Error"),
    ("node_fail", "FAILED", "GPU is lost.  Reboot the system to recover this GPU"),
    # the kernel, and torchrun
    (
        "host_oom",
        "FAILED",
        "Out of memory: Killed process 4711 (python) total-vm:91222332kB, anon-rss:64210044kB",
    ),
    (
        "killed",
        "FAILED",
        "Traceback (most recent call last):\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
        "  exitcode  : -9 (pid: 4711)\n  traceback : Signal 9 (SIGKILL) received by PID 4711",
    ),
]
REAL = [
    (str(log["kind"]), str(log["state"]), str(log["text"]))
    for log in json.loads((Path(__file__).parent / "slurm_logs.json").read_text(encoding="utf-8"))
]
CORPUS += REAL
