//! The command line of onnx-osplus: arguments in, the library's work, an account out.
//!
//! Exit status: 0 done, 1 failed, 2 usage, 3 no Linear could be quantized.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOC: cli::Alloc = cli::Alloc;

fn main() -> ExitCode {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the program, and its arguments are its own"
    )]
    cli::main(std::env::args_os().collect())
}
