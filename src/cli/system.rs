//! What the system does to a program: signals, files that are cut short while they are mapped, no memory left. Each ends
//! the program with a word, and none leaves temporary files behind.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(unix)]
use std::{
    os::unix::thread::{JoinHandleExt, RawPthread},
    sync::mpsc::{Receiver, channel},
    sync::{Mutex, PoisonError},
};

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
    if size >= LARGE {
        use_huge_pages(pointer, size);
    }
    pointer
}

/// Bytes of a block that is mapped by itself ([`return_freed_memory`]).
const LARGE: usize = 4 << 20;

/// Asks for huge pages for a large block, where the system leaves that to programs, as most do: such blocks are weights and
/// activations, new for every plan, and a fault for every 4 kB of them took a sixth of the time of a model with a large vocabulary.
#[cfg(target_os = "linux")]
fn use_huge_pages(pointer: *mut u8, size: usize) {
    const PAGE: usize = 4096;
    let start = (pointer as usize).next_multiple_of(PAGE);
    let end = (pointer as usize + size) / PAGE * PAGE;
    // SAFETY: whole pages of a block that was just allocated; the advice changes nothing of what is in them. Without huge pages
    // it is refused, and everything stays as it was.
    unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn use_huge_pages(_: *mut u8, _: usize) {}

/// Whether a thread is about to end the program because there is no memory left.
static OUT_OF_MEMORY: AtomicBool = AtomicBool::new(false);

/// Ends the program. Nothing here asks for memory.
#[cold]
fn out_of_memory(size: usize) -> ! {
    if OUT_OF_MEMORY.swap(true, Ordering::Relaxed) {
        // Another thread says so and ends all of them.
        wait_for_the_end();
    }
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
    let note = if is_written() { OUT_IS_WRITTEN } else { "" };
    last_words(&[
        b"error: out of memory: the system has no ",
        &digits[at..],
        b" bytes more for this program; a smaller --batch, fewer --threads or less data need less, or there is a limit \
          (ulimit -v, a container's)\n",
        note.as_bytes(),
    ]);
    #[cfg(unix)]
    output::try_remove_temporary_files();
    end(1)
}

fn wait_for_the_end() -> ! {
    loop {
        std::thread::park();
    }
}

/// Says all parts at once, so that no other thread speaks in between.
fn last_words(parts: &[&[u8]]) {
    let mut text = [0; 1024];
    let mut len = 0;
    for byte in parts.iter().copied().flatten().take(text.len()) {
        text[len] = *byte;
        len += 1;
    }
    #[cfg(unix)]
    // SAFETY: the standard error, and bytes that are there. What cannot be written is lost, which is all one can do.
    unsafe {
        libc::write(2, text.as_ptr().cast(), len);
    }
    #[cfg(not(unix))]
    {
        use std::io::Write;
        let _ = std::io::stderr().write_all(&text[..len]);
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

/// Bytes of memory that programs may still take, and that a container lets them. `None` where the system does not say.
pub(super) fn available_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    Some((kib * 1024).min(limit.unwrap_or(u64::MAX)))
}

/// The files that are read, as they were when the command began. Places, and no list: a signal handler reads them, which
/// must not find a list that is just growing.
static INPUTS: [OnceLock<Input>; 1024] = [const { OnceLock::new() }; 1024];

/// Whether OUT has its name.
static WRITTEN: AtomicBool = AtomicBool::new(false);

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

/// Remembers a file that is read, for the message about one that is cut short. To be called before it is mapped.
pub(super) fn watch(path: &Path) {
    let input = |path: &Path| {
        Some(Input {
            shown: super::shown::path(path),
            #[cfg(unix)]
            path: std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
                .ok()?,
            size: std::fs::metadata(path).ok()?.len(),
        })
    };
    let Some(mut input) = input(path) else { return };
    for place in &INPUTS {
        match place.set(input) {
            Ok(()) => return,
            Err(back) => input = back,
        }
    }
    // One without a place is "a file" in the message.
}

/// What is said beside an error that came behind OUT.
pub(super) const OUT_IS_WRITTEN: &str =
    "note: OUT is written and whole; what was to be written after it is missing\n";

/// Whether OUT was written.
pub(super) fn is_written() -> bool {
    WRITTEN.load(Ordering::Relaxed)
}

/// Remembers that OUT was written, for the last words.
pub(super) fn wrote_out() {
    WRITTEN.store(true, Ordering::Relaxed);
}

/// Tells glibc to give large blocks back when they are freed.
///
/// Left alone, it takes the size of the first large block that is freed as a sign that such blocks are common, and
/// keeps them from then on, in an arena per thread. Here they are weights and activations of one plan after the other,
/// and what was kept of one was seldom of use to the next: with these settings a model with a wide output took 190 MB
/// instead of 300 MB, MiniLM-L6 345 MB instead of 390 MB, in the same time.
pub(super) fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: glibc's own function with its own constants, called before there is a second thread. What it refuses, it
    // leaves as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE as libc::c_int);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 20);
    }
}

/// Forgets it: another OUT is to be made.
pub(super) fn begin_another() {
    WRITTEN.store(false, Ordering::Relaxed);
}

/// Takes over what the system would do by itself. To be called before there is a second thread.
#[cfg(unix)]
pub(super) fn install() {
    await_signals();
    let_one_thread_speak();
    #[cfg(target_os = "linux")]
    handle_bus_errors();
}

#[cfg(not(unix))]
pub(super) fn install() {}

/// The thread that waits for signals, if there is one, and its answers.
#[cfg(unix)]
static LISTENER: OnceLock<(RawPthread, Mutex<Receiver<()>>)> = OnceLock::new();

/// Signals that end the program.
#[cfg(unix)]
const ENDINGS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The question to it.
#[cfg(unix)]
const ASK: libc::c_int = libc::SIGUSR2;

/// Returns if no signal came that is to end the program: then what follows is done. Else the program ends here, and not
/// behind work that happened to be faster than the thread that was woken by the signal.
#[cfg(unix)]
pub(super) fn end_if_signalled() {
    if let Some((thread, answers)) = LISTENER.get() {
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the thread never ends before the process does.
        if unsafe { libc::pthread_kill(*thread as libc::pthread_t, ASK) } == 0 {
            // It answers, or ends the process; it can do nothing else.
            let _ = answers.recv();
        }
    }
}

/// There is nothing to be asked.
#[cfg(not(unix))]
pub(super) fn end_if_signalled() {}

/// SIGINT, SIGTERM and SIGHUP go to a thread of their own, which removes temporary files and ends the program. They stay
/// ignored where whoever started this program had them ignored (nohup).
#[cfg(unix)]
fn await_signals() {
    // SAFETY: a set is made by sigemptyset before it is read, and all calls get valid pointers to it. Other threads do
    // not exist yet; they inherit the mask.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in ENDINGS {
            let mut old: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, std::ptr::null(), &mut old) == 0;
            if !known || old.sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&mut set, signal);
            }
        }
        libc::sigaddset(&mut set, ASK);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    let (answer, answers) = channel();
    let wait = move || {
        loop {
            let mut signal = 0;
            // SAFETY: both pointers are to this thread's own variables.
            if unsafe { libc::sigwait(&set, &mut signal) } != 0 {
                continue;
            }
            if signal != ASK {
                output::remove_temporary_files();
                end(128 + signal);
            }
            // What is pending comes next, and ends the process.
            if !is_pending() {
                // Nobody waits if another program sent the question.
                let _ = answer.send(());
            }
        }
    };
    let started = std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(128 << 10)
        .spawn(wait);
    match started {
        Ok(thread) => {
            let _ = LISTENER.set((thread.as_pthread_t(), Mutex::new(answers)));
        }
        // Without the thread they do what they always do.
        Err(_) => {
            // SAFETY: as above.
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
        }
    }
}

/// Whether one of the signals that end the program has come and was not taken yet. They are blocked, or not waited for.
#[cfg(unix)]
fn is_pending() -> bool {
    // SAFETY: sigpending fills the set that it gets, before it is read.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&mut pending) == 0
            && ENDINGS
                .iter()
                .any(|&signal| libc::sigismember(&pending, signal) == 1)
    }
}

/// Without memory a panic cannot be thrown either, and ends the program as a crash: not while another thread is saying that
/// there is no memory.
#[cfg(unix)]
fn let_one_thread_speak() {
    extern "C" fn handler(_: libc::c_int) {
        while OUT_OF_MEMORY.load(Ordering::Relaxed) {
            // SAFETY: one of the functions that a signal handler may call.
            unsafe { libc::pause() };
        }
        // Any other abort goes on when this returns.
    }
    // SAFETY: a zeroed sigaction with a handler of the right form, which touches one atomic number.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGABRT, &action, std::ptr::null_mut());
    }
}

/// A page of a mapped file that is no longer there: another program cut the file short.
#[cfg(target_os = "linux")]
fn handle_bus_errors() {
    extern "C" fn handler(_: libc::c_int) {
        let mut inputs = INPUTS.iter().map_while(OnceLock::get);
        let cut = inputs.find(|input| {
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
            b" was cut short by another program, or its disk failed, while it was being read; run again\n",
            if is_written() {
                OUT_IS_WRITTEN.as_bytes()
            } else {
                b"note: nothing was written\n"
            },
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
