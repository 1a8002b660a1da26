//! The runner for any toolchain: a seeded loop over the targets, in a child process that may die.
//!
//!     cargo run --example fuzz -- --seconds 60
//!
//! Input number i of a target is made from its corpus by the seed and i alone, so that whatever ends the child can be made
//! again from two numbers, which the child writes down before each run. What is found goes to `fuzz/artifacts`, and the
//! exit status is 1.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a program for developers, which speaks, reads its arguments, and gives up where it cannot work"
)]

mod mutate;
#[expect(
    unreachable_pub,
    dead_code,
    reason = "the library of the crate in this folder, and of its tests, too"
)]
#[path = "../src/lib.rs"]
mod targets;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use mutate::{Random, mutated};
use targets::{FuzzTarget, TARGETS, root};

/// One input may take so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// On a machine that has no time for the child it may take so many times that long, if it does not work all the while.
const STARVED: u32 = 30;

/// The child may have so much address space.
const MEMORY: u64 = 6 << 30;

/// Seconds that a target has before the next one comes.
const TURN: f64 = 5.0;

/// Larger files are no seeds: a run with one takes too long.
const LARGEST_SEED: u64 = 400 << 10;

struct Arguments {
    seconds: f64,
    seed: u64,
    /// Inputs of each target, at most.
    runs: u64,
    targets: Vec<&'static FuzzTarget>,
    log: Option<PathBuf>,
    /// A child's: the number of the first input, and the file for the number of the current one.
    from: Option<u64>,
    /// Run these files, and nothing else.
    files: Vec<PathBuf>,
}

fn main() {
    let arguments = arguments().unwrap_or_else(|problem| {
        eprintln!("fuzz: error: {problem}");
        eprintln!(
            "usage: fuzz [--seconds N] [--seed N] [--runs N] [--target NAME]… [--log FILE] [FILE]…"
        );
        std::process::exit(2)
    });
    let status = match (arguments.from, arguments.files.is_empty()) {
        (Some(from), _) => child(&arguments, from),
        (None, false) => replay(&arguments),
        (None, true) => parent(&arguments),
    };
    std::process::exit(status);
}

fn arguments() -> Result<Arguments, String> {
    let mut all = Arguments {
        seconds: 60.0,
        seed: 1,
        runs: u64::MAX,
        targets: Vec::new(),
        log: None,
        from: None,
        files: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        match word.as_str() {
            "--seconds" => all.seconds = number(value()?)? as f64,
            "--seed" => all.seed = number(value()?)?,
            "--runs" => all.runs = number(value()?)?,
            "--from" => all.from = Some(number(value()?)?),
            "--log" => all.log = Some(value()?.into()),
            "--target" => {
                let name = value()?;
                let target = TARGETS.iter().find(|target| target.name == name);
                all.targets.push(target.ok_or(format!("no target {name}"))?);
            }
            _ if !word.starts_with('-') => all.files.push(word.into()),
            _ => return Err(format!("unknown option {word}")),
        }
    }
    if all.targets.is_empty() {
        all.targets = TARGETS.iter().collect();
    }
    Ok(all)
}

/// The committed corpus of a target, and for models those of the tests.
fn corpus(target: &FuzzTarget) -> Vec<Vec<u8>> {
    let mut folders = vec![root().join("fuzz/corpus").join(target.corpus)];
    if target.corpus == "model" {
        folders.extend(["models/architectures", "tests/data"].map(|f| root().join(f)));
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let entries = std::fs::read_dir(&folder).into_iter().flatten();
        paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    paths.sort();
    let small = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|m| m.is_file() && m.len() <= LARGEST_SEED)
    };
    let is_seed = |path: &PathBuf| match target.corpus {
        "model" => path.extension().is_some_and(|e| e == "onnx"),
        _ => true,
    };
    let seeds = paths.iter().filter(|p| small(p) && is_seed(p));
    seeds.filter_map(|path| std::fs::read(path).ok()).collect()
}

/// Input number `i`. Most come from the small seeds, which are run in no time.
fn input(corpus: &[Vec<u8>], small: &[Vec<u8>], target: &FuzzTarget, seed: u64, i: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ i.wrapping_mul(0x2545_f491_4f6c_dd1d));
    random.next();
    let from = if small.is_empty() || random.one_in(8) {
        corpus
    } else {
        small
    };
    mutated(from, matches!(target.corpus, "model" | "pb"), &mut random)
}

fn small_of(corpus: &[Vec<u8>]) -> Vec<Vec<u8>> {
    corpus
        .iter()
        .filter(|data| data.len() < 8 << 10)
        .cloned()
        .collect()
}

// ------------------------------------------------------------------------------------------------------------- child

/// Runs inputs until the time is over; says on the standard output what it does.
fn child(arguments: &Arguments, from: u64) -> i32 {
    limit_memory();
    static LAST: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        *LAST.lock().unwrap_or_else(|e| e.into_inner()) = info.to_string().replace('\n', " ");
    }));
    let target = arguments.targets[0];
    let corpus = corpus(target);
    let small = small_of(&corpus);
    let folder = tempfile::Builder::new()
        .prefix("fuzz")
        .tempdir_in(scratch())
        .expect("a folder to work in");
    let start = Instant::now();
    let mut i = from;
    while start.elapsed().as_secs_f64() < arguments.seconds && i < arguments.runs {
        say(format_args!("at {i}"));
        let data = input(&corpus, &small, target, arguments.seed, i);
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&data, folder.path()))).is_err() {
            let what = LAST.lock().unwrap_or_else(|e| e.into_inner()).clone();
            say(format_args!("panic {i} {what}"));
        }
        i += 1;
    }
    say(format_args!("done {i}"));
    0
}

fn say(line: std::fmt::Arguments) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Memory where there is some for files.
fn scratch() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() {
        shared
    } else {
        std::env::temp_dir()
    }
}

#[cfg(unix)]
fn limit_memory() {
    let limit = libc::rlimit {
        rlim_cur: MEMORY as libc::rlim_t,
        rlim_max: MEMORY as libc::rlim_t,
    };
    // SAFETY: the structure is a valid one, and only this process is limited.
    unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
}

#[cfg(not(unix))]
fn limit_memory() {}

/// User and system time of children that have ended.
#[cfg(unix)]
fn cpu_of_children() -> f64 {
    // SAFETY: a zeroed structure of integers is one, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

#[cfg(not(unix))]
fn cpu_of_children() -> f64 {
    0.0
}

/// Whether a child that says nothing did not work either.
fn is_starved(before: Option<Duration>, now: Option<Duration>) -> bool {
    matches!((before, now), (Some(before), Some(now)) if now < before + PATIENCE)
}

/// User and system time of a child so far, where the system says.
fn cpu_of(child: &Child) -> Option<Duration> {
    // Fields 14 and 15, behind a name in brackets; in hundredths of a second wherever Linux runs.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    let fields = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).flat_map(str::parse).collect();
    match ticks[..] {
        [user, system] => Some(Duration::from_millis((user + system) * 10)),
        _ => None,
    }
}

// ------------------------------------------------------------------------------------------------------------ parent

#[derive(Default)]
struct Figures {
    runs: u64,
    cpu: f64,
    findings: u64,
}

fn parent(arguments: &Arguments) -> i32 {
    let start = Instant::now();
    let mut figures: Vec<Figures> = arguments
        .targets
        .iter()
        .map(|_| Figures::default())
        .collect();
    let mut next: Vec<u64> = vec![0; figures.len()];
    let mut seen = BTreeSet::new();
    let turn = TURN.min(arguments.seconds / figures.len() as f64).max(1.0);
    let open = |next: &[u64]| next.iter().any(|&n| n < arguments.runs);
    while start.elapsed().as_secs_f64() < arguments.seconds && open(&next) {
        for (k, target) in arguments.targets.iter().enumerate() {
            if next[k] >= arguments.runs {
                continue;
            }
            let cpu = cpu_of_children();
            let first = next[k];
            let findings = a_turn(target, arguments, &mut next[k], turn);
            figures[k].runs += next[k] - first;
            figures[k].cpu += cpu_of_children() - cpu;
            for (i, what) in findings {
                // The same words with other numbers are the same.
                let kind: String = what.chars().filter(|c| !c.is_ascii_digit()).collect();
                if seen.insert((target.name, kind)) {
                    figures[k].findings += 1;
                    keep(target, arguments.seed, i, &what);
                }
            }
        }
        report(arguments, &figures);
    }
    let found: u64 = figures.iter().map(|f| f.findings).sum();
    for (target, figures) in arguments.targets.iter().zip(&figures) {
        println!(
            "{:8} {:>9} runs {:>8.1} s CPU {:>3} findings",
            target.name, figures.runs, figures.cpu, figures.findings
        );
    }
    i32::from(found > 0)
}

/// One child; what it found, as the number of the input and the words.
fn a_turn(
    target: &FuzzTarget,
    arguments: &Arguments,
    next: &mut u64,
    seconds: f64,
) -> Vec<(u64, String)> {
    let mut findings = Vec::new();
    let mut process = spawn(target, arguments, *next, seconds);
    let (sender, lines) = channel();
    if let Some(out) = process.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
    }
    let mut done = false;
    let (mut worked, mut waited) = (Some(Duration::ZERO), 0);
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                (worked, waited) = (cpu_of(&process), 0);
                let mut words = line.splitn(3, ' ');
                let (what, i) = (words.next(), words.next().and_then(|i| i.parse().ok()));
                *next = i.unwrap_or(*next);
                match what {
                    Some("panic") => {
                        findings.push((*next, words.next().unwrap_or_default().to_owned()))
                    }
                    Some("done") => done = true,
                    _ => {}
                }
            }
            Err(RecvTimeoutError::Timeout)
                if is_starved(worked, cpu_of(&process)) && waited < STARVED =>
            {
                waited += 1;
            }
            Err(RecvTimeoutError::Timeout) => {
                let _ = process.kill();
                findings.push((*next, format!("takes longer than {} s", PATIENCE.as_secs())));
                done = true;
                *next += 1;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let ended = process
        .wait()
        .map_or("lost".to_owned(), |status| status.to_string());
    if !done {
        findings.push((*next, format!("the process ended: {ended}")));
        *next += 1;
    }
    findings
}

fn spawn(target: &FuzzTarget, arguments: &Arguments, from: u64, seconds: f64) -> Child {
    let program = std::env::current_exe().expect("this program is a file");
    let child = Command::new(program)
        .args(["--target", target.name])
        .args(["--seed", &arguments.seed.to_string()])
        .args(["--runs", &arguments.runs.to_string()])
        .args([
            "--from",
            &from.to_string(),
            "--seconds",
            &(seconds.ceil() as u64).to_string(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    child.expect("this program can be started again")
}

/// Writes the input that did it.
fn keep(target: &FuzzTarget, seed: u64, i: u64, what: &str) {
    let corpus = corpus(target);
    let data = input(&corpus, &small_of(&corpus), target, seed, i);
    let folder = root().join("fuzz/artifacts").join(target.name);
    let path = folder.join(format!("{seed}-{i}"));
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, data));
    let place = written.map_or_else(|e| e.to_string(), |()| path.display().to_string());
    eprintln!("FOUND {}: {what}\n      {place}", target.name);
}

fn report(arguments: &Arguments, figures: &[Figures]) {
    let Some(path) = &arguments.log else { return };
    let cpu: f64 = figures.iter().map(|f| f.cpu).sum();
    let mut text = format!("seed {}: {:.0} s CPU\n", arguments.seed, cpu);
    for (target, figures) in arguments.targets.iter().zip(figures) {
        text += &format!(
            "  {:8} {:>9} runs {:>8.1} s CPU {:>3} findings\n",
            target.name, figures.runs, figures.cpu, figures.findings
        );
    }
    let _ = std::fs::write(path, text);
}

/// Runs files as they are, without a child: a panic is shown as it is.
fn replay(arguments: &Arguments) -> i32 {
    let folder = tempfile::tempdir().expect("a folder to work in");
    for path in &arguments.files {
        let data = std::fs::read(path).expect("the file can be read");
        for target in &arguments.targets {
            eprintln!("{} {}", target.name, path.display());
            (target.run)(&data, folder.path());
        }
    }
    0
}
