"""A vCPU's thread: KVM_RUN, what it returned with, and the ways others have of stopping it.

    parked  ──run──▶  in KVM_RUN or a bus handler  ──park (kick)──▶  parked  ──end──▶  over
                      └── call (kick): work between two exits, in this thread ──┘

The thread alone touches the vCPU's registers (kvm_vcpu says why); others `call`. A kick is `immediate_exit`, then the
signal: one that comes before KVM_RUN makes it return at once, so none is lost, and KVM completes the exit it reported
last before it returns. So when the thread has parked no half of an instruction is outstanding.

What ends a guest is raised here: a `GuestFault` names the vCPU and says what it did; anything else is ours. Both go to
the machine, and the thread parks. This is one of the supervisors of STYLE 8.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from appliance.errors import ApplianceError, GuestFault, HostError
from appliance.kernel import kick
from appliance.kernel.kvm_ioctls import Ioctl
from appliance.kernel.kvm_object import run_ioctl
from appliance.kernel.kvm_run_abi import (
    KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
    ExitReason,
)
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.vmm import fault
from appliance.vmm.bus import Bus
from appliance.vmm.device import MachineRequest

logger = logging.getLogger(__name__)
T = TypeVar("T")

# struct kvm_run from exit_reason on (kvm_run_abi asserts these offsets): the exit's number, then its part of the union
_EXIT_OFFSET: Final = 8
_IO_EXIT = struct.Struct("<I20xBBHIQ")  # direction, size, port, count, data_offset
_MMIO_EXIT = struct.Struct("<Q8sIB")  # phys_addr, data, len, is_write
_MMIO_OFFSET, _MMIO_DATA = 32, 40
_WORDS = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_LOAD = {size: word.unpack_from for size, word in _WORDS.items()}
_STORE = {size: word.pack_into for size, word in _WORDS.items()}

_REQUESTS = {
    KVM_SYSTEM_EVENT_SHUTDOWN: MachineRequest.POWER_OFF,
    KVM_SYSTEM_EVENT_RESET: MachineRequest.RESET,
    KVM_SYSTEM_EVENT_CRASH: MachineRequest.PANIC,
}


class VcpuHost(Protocol):
    """The machine as its vCPUs see it; called in their threads."""

    def request(self, request: MachineRequest, why: str) -> None:
        """As `DeviceContext.request`."""

    def vcpu_failed(self, index: int, error: Exception) -> None:
        """It will not run any more; the machine is to end."""


class _Wanted(StrEnum):
    """What the thread is to do when it has no work."""

    PARK = "park"  # wait
    RUN = "run"  # let the guest run
    END = "end"  # leave


class Vcpu:
    """One vCPU. Made and ended on the loop; every method may be called from any thread, and none blocks but `join`."""

    def __init__(self, kvm: KvmVcpu, host: VcpuHost, *, ports: Bus, mmio: Bus, thread_name: str) -> None:
        self.index = kvm.index
        self.name = kvm.name
        self._kvm = kvm
        self._host = host
        self._ports, self._mmio = ports, mmio
        self._mail = threading.Condition()
        self._wanted = _Wanted.PARK
        self._parked = self._over = self._failed = self._has_run = False
        self._work: deque[Callable[[], None]] = deque()
        self._told_when_parked: list[Future[None]] = []
        self._thread = threading.Thread(target=self._main, name=thread_name, daemon=True)

    # --- from outside -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the thread, parked."""
        kick.install()
        self._thread.start()

    def run(self) -> None:
        """Let the guest run; a vCPU that has failed stays parked."""
        self._want(_Wanted.PARK if self._failed else _Wanted.RUN)

    def hold(self) -> None:
        """Stop the guest very soon, and do not wait for it. Also from this vCPU's own bus handlers."""
        self._want(_Wanted.PARK)

    def park(self) -> Future[None]:
        """`hold`; done when the guest has stopped."""
        done: Future[None] = Future()
        with self._mail:
            self._wanted = _Wanted.END if self._wanted is _Wanted.END else _Wanted.PARK
            if self._parked or self._over:
                done.set_result(None)
            else:
                self._told_when_parked.append(done)
                self._kick()
        return done

    def call(self, work: Callable[[KvmVcpu], T]) -> Future[T]:
        """Do `work` in the vCPU's thread, between two exits or while parked. Cancelled when the thread is over."""
        done: Future[T] = Future()
        with self._mail:
            if self._over:
                done.cancel()
                return done
            self._work.append(partial(_fulfil, done, partial(work, self._kvm)))
            self._kick()
        return done

    def kick(self) -> None:
        """Leave KVM_RUN and go on: whatever was changed outside is looked at."""
        with self._mail:
            self._kick()

    def end(self) -> None:
        """The thread ends, wherever it is."""
        self._want(_Wanted.END)

    def join(self, timeout_s: float) -> bool:
        """Wait for that, not on the loop; False when it has not ended: it hangs in a device of ours."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def cpu_seconds(self) -> float:
        """What the thread has used of the processor: the guest's time and ours for it. 0 when it does not run."""
        with self._mail:
            if self._over or self._thread.ident is None:
                return 0.0
            return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def _want(self, wanted: _Wanted) -> None:
        with self._mail:
            if self._wanted is not _Wanted.END and self._wanted is not wanted:
                self._wanted = wanted
                self._kick()

    def _kick(self) -> None:
        """The lock is held, which keeps the thread from ending."""
        if self._parked:
            self._mail.notify()
        elif not self._over and (ident := self._thread.ident) is not None:
            self._kvm.immediate_exit = True
            kick.send(ident)

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _main(self) -> None:
        with contextlib.suppress(OSError):  # for `ps -L`: 15 characters fit
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self._thread.name[:15])
        while self._attend():
            try:
                self._run()
            except Exception as error:
                if not isinstance(error, ApplianceError):
                    logger.exception("%s: a device of ours failed", self.name)
                with self._mail:
                    self._failed = True
                    self._wanted = _Wanted.END if self._wanted is _Wanted.END else _Wanted.PARK
                self._host.vcpu_failed(self.index, error)

    def _attend(self) -> bool:
        """Do what others want of this thread; True when the guest is to run, False when the thread is to end.

        `immediate_exit` is cleared first: who kicks after that has said before what they want, under the lock.
        """
        while True:
            with self._mail:
                self._kvm.immediate_exit = False
                while not self._work:
                    match self._wanted:
                        case _Wanted.RUN:
                            self._leave_park()
                            return True
                        case _Wanted.END:
                            self._over = True
                            self._tell_parked()
                            return False
                        case _Wanted.PARK:
                            self._parked = True
                            self._tell_parked()
                            self._mail.wait()
                work = self._work.popleft()
            work()

    def _leave_park(self) -> None:
        if self._parked and self._has_run:
            with contextlib.suppress(OSError):  # EINVAL: a guest without kvmclock
                self._kvm.kvmclock_ctrl()
        self._parked, self._has_run = False, True

    def _tell_parked(self) -> None:
        told, self._told_when_parked = self._told_when_parked, []
        for each in told:
            if each.set_running_or_notify_cancel():
                each.set_result(None)

    def _run(self) -> None:
        """KVM_RUN until a kick. The hot path: port and memory accesses are dealt with in place, the rest in `_exit`."""
        fd, area, request = self._kvm.fileno(), self._kvm.area, int(Ioctl.KVM_RUN)
        read_port, write_port = self._ports.read, self._ports.write
        io_exit, load, store = _IO_EXIT.unpack_from, _LOAD, _STORE
        while True:
            try:
                run_ioctl(fd, request)
            except InterruptedError:
                return
            except BlockingIOError:  # EAGAIN: a processor has just been woken by INIT or SIPI
                continue
            except OSError as error:
                raise HostError.from_os_error(error, f"{self.name}: KVM_RUN") from error
            reason, is_write, size, port, count, data = io_exit(area, _EXIT_OFFSET)
            if reason == 2:  # KVM_EXIT_IO
                if count != 1:
                    self._string_io(port, size, count, data, is_write=bool(is_write))
                elif is_write:
                    write_port(port, size, load[size](area, data)[0])
                else:
                    store[size](area, data, read_port(port, size))
            elif reason == 6:  # KVM_EXIT_MMIO
                self._mmio_exit()
            else:
                self._exit(reason)

    def _mmio_exit(self) -> None:
        area = self._kvm.area
        address, data, size, is_write = _MMIO_EXIT.unpack_from(area, _MMIO_OFFSET)
        if size not in _WORDS:  # a part of an access that crosses pages: handlers know powers of two only
            self._odd_mmio(address, data[:size], is_write=bool(is_write))
        elif is_write:
            self._mmio.write(address, size, int.from_bytes(data[:size], "little"))
        else:
            _STORE[size](area, _MMIO_DATA, self._mmio.read(address, size))

    def _odd_mmio(self, address: int, data: bytes, *, is_write: bool) -> None:
        for number, byte in enumerate(data):
            if is_write:
                self._mmio.write(address + number, 1, byte)
            else:
                _STORE[1](self._kvm.area, _MMIO_DATA + number, self._mmio.read(address + number, 1))

    def _string_io(self, port: int, size: int, count: int, data: int, *, is_write: bool) -> None:
        """INS and OUTS: KVM hands over up to a page of items at once."""
        area, ports = self._kvm.area, self._ports
        for place in range(data, data + size * count, size):
            if is_write:
                ports.write(port, size, _LOAD[size](area, place)[0])
            else:
                _STORE[size](area, place, ports.read(port, size))

    def _exit(self, reason: int) -> None:
        """What is neither port nor memory."""
        match reason:
            case ExitReason.INTR:
                return
            case ExitReason.SHUTDOWN:
                self._host.request(MachineRequest.RESET, f"vcpu {self.index}: triple fault")
                self.hold()
            case ExitReason.SYSTEM_EVENT:
                kind = self._kvm.kvm_run.system_event.type
                if kind not in _REQUESTS:
                    raise GuestFault(f"{self.name}: KVM_EXIT_SYSTEM_EVENT of type {kind}")
                self._host.request(_REQUESTS[kind], f"vcpu {self.index}: system event {kind}")
                self.hold()
            case _:
                raise GuestFault(f"{self.name}: {fault.exit_reason(self._kvm.kvm_run)}")


def _fulfil(done: Future[T], work: Callable[[], T]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(work())
    except Exception as error:  # noqa: BLE001  whoever asked for it is told
        done.set_exception(error)
