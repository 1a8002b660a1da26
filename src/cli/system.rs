//! What the system does to a program: signals, files that are cut short while they are mapped, no memory left. Each ends
//! the program with a word, and none leaves temporary files behind.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::OnceLock;

#[cfg(unix)]
use onnx_osplus::onnx::output;

/// The system's allocator, which says so when there is no memory left.
pub(crate) struct Alloc;

// SAFETY: every call is handed on to the system's allocator as it came; a null pointer, which callers must expect, is the
// one result that is not handed back.
unsafe impl GlobalAlloc for Alloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is that of the system's allocator.
        checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the pointer came from `System`, with this layout; the size is the caller's to get right.
        checked(unsafe { System.realloc(pointer, layout, size) }, size)
    }
}

fn checked(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() {
        out_of_memory(size);
    }
    pointer
}

/// Ends the program. Nothing here asks for memory.
#[cold]
fn out_of_memory(size: usize) -> ! {
    let mut digits = [b'0'; 20];
    let (mut rest, mut at) = (size, digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let parts: [&[u8]; 3] = [
        b"error: out of memory: the system has no ",
        &digits[at..],
        b" bytes more for this program; a smaller --batch, fewer --threads or less data need less, or there is a limit \
          (ulimit -v, a container's)\n",
    ];
    last_words(&parts);
    #[cfg(unix)]
    output::try_remove_temporary_files();
    end(1)
}

#[cfg(unix)]
fn last_words(parts: &[&[u8]]) {
    for part in parts {
        // SAFETY: the standard error, and bytes that are there. What cannot be written is lost, which is all one can do.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
}

#[cfg(not(unix))]
fn last_words(parts: &[&[u8]]) {
    use std::io::Write;
    for part in parts {
        let _ = std::io::stderr().write_all(part);
    }
}

#[cfg(unix)]
fn end(status: i32) -> ! {
    // SAFETY: ends the process at once; other threads may be in the middle of anything, so nothing is run on the way out.
    unsafe { libc::_exit(status) }
}

#[cfg(not(unix))]
fn end(status: i32) -> ! {
    std::process::exit(status)
}

/// Bytes that this user may still write to the disk that a file is, or will be, on. `None` where the system does not say.
#[cfg(target_os = "linux")]
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let folder = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: the path ends with a zero byte, and a zeroed structure of integers is one.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        let known = libc::statvfs(folder.as_ptr(), &mut stat) == 0 && stat.f_blocks > 0;
        known.then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// The files that are read, as they were when the command began.
static INPUTS: OnceLock<Vec<Input>> = OnceLock::new();

#[cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "only read where SIGBUS is handled")
)]
struct Input {
    shown: String,
    #[cfg(unix)]
    path: std::ffi::CString,
    size: u64,
}

/// Remembers the files that are read, for the message about one that is cut short.
pub(super) fn watch<'a>(paths: impl Iterator<Item = &'a Path>) {
    let input = |path: &Path| {
        Some(Input {
            shown: super::shown::path(path),
            #[cfg(unix)]
            path: std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
                .ok()?,
            size: std::fs::metadata(path).ok()?.len(),
        })
    };
    // Set once, as one command is run; a second one would only have worse messages.
    let _ = INPUTS.set(paths.filter_map(input).collect());
}

/// Takes over what the system would do by itself. To be called before there is a second thread.
#[cfg(unix)]
pub(crate) fn install() {
    await_signals();
    #[cfg(target_os = "linux")]
    handle_bus_errors();
}

#[cfg(not(unix))]
pub(crate) fn install() {}

/// SIGINT, SIGTERM and SIGHUP go to a thread of their own, which removes temporary files and ends the program. They stay
/// ignored where whoever started this program had them ignored (nohup).
#[cfg(unix)]
fn await_signals() {
    // SAFETY: a set is made by sigemptyset before it is read, and all calls get valid pointers to it. Other threads do
    // not exist yet; they inherit the mask.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            let mut old: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, std::ptr::null(), &mut old) == 0;
            if !known || old.sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&mut set, signal);
            }
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    let wait = move || {
        let mut signal = 0;
        // SAFETY: both pointers are to this thread's own variables.
        while unsafe { libc::sigwait(&set, &mut signal) } != 0 {}
        output::remove_temporary_files();
        end(128 + signal);
    };
    let started = std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(128 << 10)
        .spawn(wait);
    if started.is_err() {
        // Without the thread they do what they always do.
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
    }
}

/// A page of a mapped file that is no longer there: another program cut the file short.
#[cfg(target_os = "linux")]
fn handle_bus_errors() {
    extern "C" fn handler(_: libc::c_int) {
        let inputs = INPUTS.get().map_or(&[][..], Vec::as_slice);
        let cut = inputs.iter().find(|input| {
            // SAFETY: stat is one of the functions that a signal handler may call; the path ends with a zero byte, and a
            // zeroed structure of integers is one.
            unsafe {
                let mut now: libc::stat = std::mem::zeroed();
                libc::stat(input.path.as_ptr(), &mut now) == 0 && (now.st_size as u64) < input.size
            }
        });
        let what = cut.map_or("a file", |input| input.shown.as_str());
        last_words(&[
            b"error: ",
            what.as_bytes(),
            b" was cut short by another program, or its disk failed, while it was being read; nothing was written, run again\n",
        ]);
        output::try_remove_temporary_files();
        end(1);
    }
    // SAFETY: a zeroed sigaction with a handler of the right form; the handler ends the program and touches nothing that
    // the interrupted code could have left half done but the list of temporary files, which it leaves alone if it is
    // locked. It runs on the thread's alternate stack where there is one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}
