//! Does KVM work here? One virtual CPU runs one instruction. Runs in a process of its own, since there are hosts where
//! it never comes back (nested virtualisation that offers /dev/kvm and cannot serve it).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

// Linux, include/uapi/linux/kvm.h.
const KVM_CREATE_VM: libc::Ioctl = 0xAE01;
const KVM_CREATE_VCPU: libc::Ioctl = 0xAE41;
const KVM_RUN: libc::Ioctl = 0xAE80;

/// Opens /dev/kvm and makes a virtual machine with one CPU run. It has no memory, so the very first instruction fetch
/// brings it back; that it comes back is all that is asked.
///
/// # Errors
/// In words that name the step that failed.
pub fn probe() -> Result<(), String> {
    let step = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let kvm = File::options().read(true).write(true).open("/dev/kvm").map_err(step("cannot open /dev/kvm"))?;
    let machine = descriptor(&kvm, KVM_CREATE_VM).map_err(step("/dev/kvm makes no virtual machine"))?;
    let cpu = descriptor(&machine, KVM_CREATE_VCPU).map_err(step("/dev/kvm makes no virtual CPU"))?;
    // SAFETY: these requests take no argument but an integer.
    let run = unsafe { libc::ioctl(cpu.as_raw_fd(), KVM_RUN, 0) };
    if run < 0 {
        let error = io::Error::last_os_error();
        // Processors without "unrestricted guest" miss their memory before they run, and that is said so; anything
        // else is a KVM that cannot run.
        if error.raw_os_error() != Some(libc::EFAULT) {
            return Err(step("a virtual CPU does not run")(error));
        }
    }
    Ok(())
}

/// A request whose result is a new descriptor.
fn descriptor(on: &impl AsRawFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests take no argument but an integer and return a descriptor that nobody else owns.
    unsafe {
        match libc::ioctl(on.as_raw_fd(), request, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}
