//! The command line of onnx-osplus: arguments in, the library's work, an account out.
//!
//! Exit status: 0 done, 1 failed, 2 usage, 3 no Linear could be quantized.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOC: cli::Alloc = cli::Alloc;

fn main() -> ExitCode {
    return_freed_memory();
    cli::install();
    let command = cli::parse();
    let done = cli::catch_panics(|| cli::run(&command));
    cli::end_if_signalled();
    match done {
        Ok(status) => status,
        Err(error) => {
            cli::say(&cli::message(&error));
            cli::exit_status(&error)
        }
    }
}

/// Tells glibc to give large blocks back when they are freed.
///
/// Left alone, it takes the size of the first large block that is freed as a sign that such blocks are common, and
/// keeps them from then on, in an arena per thread. Here they are weights and activations of one plan after the other,
/// and what was kept of one was seldom of use to the next: with these settings a model with a wide output took 190 MB
/// instead of 300 MB, MiniLM-L6 345 MB instead of 390 MB, in the same time.
fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: glibc's own function with its own constants, called before there is a second thread. What it refuses, it
    // leaves as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 20);
    }
}
