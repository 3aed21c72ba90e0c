//! What the program is asked for, and who does it.

use std::process::{Child, Command, ExitCode, Stdio};

use clap::Parser;
use crossproc_crash::options::{Options, is_asked};
use crossproc_crash::report::Report;
use crossproc_crash::scene::Operation;
use crossproc_crash::{
    all_states, double, errno, hostile, identity, images, interleave, kills, operations, sleepers, step,
    stop, toys, trap,
};

/// A way to test: its name, what it does, whether it needs ptrace, and who does it.
struct Mode {
    name: &'static str,
    about: &'static str,
    needs_ptrace: bool,
    run: fn(&Options, &[Operation]) -> Report,
}

/// All modes. `--mode all` runs them in this order.
const MODES: &[Mode] = &[
    Mode {
        name: kills::MODE,
        about: "real kills after each instruction",
        needs_ptrace: true,
        run: kills::run,
    },
    Mode { name: images::MODE, about: "each distinct state put back", needs_ptrace: true, run: images::run },
    Mode { name: double::MODE, about: "the survivor killed as well", needs_ptrace: true, run: double::run },
    Mode { name: trap::MODE, about: "real kills without ptrace", needs_ptrace: false, run: trap::run },
    Mode { name: stop::MODE, about: "frozen after each instruction", needs_ptrace: true, run: stop::run },
    Mode {
        name: sleepers::MODE,
        about: "deaths and stops around sleepers",
        needs_ptrace: true,
        run: sleepers::run,
    },
    Mode {
        name: interleave::MODE,
        about: "two processes in every order",
        needs_ptrace: true,
        run: interleave::run,
    },
    Mode {
        name: hostile::MODE,
        about: "wrong values written at each instruction",
        needs_ptrace: true,
        run: hostile::run,
    },
    Mode { name: errno::MODE, about: "each system call fails once", needs_ptrace: true, run: errno::run },
    Mode {
        name: identity::MODE,
        about: "a dead one's number in use again",
        needs_ptrace: false,
        run: identity::run,
    },
];

/// Kills a process after each single instruction of an operation, and looks at what the others find.
#[derive(Debug, Parser)]
#[command(name = "crash")]
struct Cli {
    /// Operations whose name contains this, in any case (`queue`: spsc too); all
    #[arg(long, default_value = "all")]
    op: String,
    /// Which modes, separated by commas: kills, images, double, trap, stop, sleepers, interleave, hostile, errno, identity; all
    #[arg(long, default_value = "all", value_delimiter = ',')]
    mode: Vec<String>,
    /// The usual modes in half a minute: real kills in the middle of states only, fewer pairs
    #[arg(long)]
    quick: bool,
    /// One line for programs, at the end
    #[arg(long)]
    json: bool,
    /// As if ptrace were denied
    #[arg(long)]
    no_ptrace: bool,
    /// Longer operations are not killed at every instruction
    #[arg(long, default_value_t = Options::default().longest)]
    longest: u64,
    /// From which the modes that sample draw; one is chosen and printed if none is given
    #[arg(long)]
    seed: Option<u64>,
    /// Names of the operations, and nothing else
    #[arg(long)]
    list: bool,
    /// Of the operations only each N-th, from the I-th: `I/N`. For the processes among which a run is divided.
    #[arg(long, hide = true, value_parser = share)]
    share: Option<(usize, usize)>,
}

fn share(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parts.filter(|(i, n)| i < n).ok_or_else(|| "I/N with I less than N".to_owned())
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Each look would be stepped.
    crossproc_atomic::set_spinning(false);
    let mut table = operations::all();
    table.retain(|operation| is_asked(&cli.op, &operation.title()));
    if cli.list {
        table.iter().for_each(|operation| println!("{}", operation.title()));
        return ExitCode::SUCCESS;
    }
    // The other modes have lists of their own.
    let needs_table = cli
        .mode
        .iter()
        .any(|mode| ["all", kills::MODE, images::MODE, double::MODE, trap::MODE].contains(&mode.as_str()));
    if table.is_empty() && needs_table {
        eprintln!("error: no operation is called `{}`; --list has the names", cli.op);
        return ExitCode::FAILURE;
    }
    let ptrace = !cli.no_ptrace && step::ptrace_allowed();
    let chosen = match modes(&cli.mode, ptrace) {
        Ok(chosen) => chosen,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::FAILURE;
        }
    };
    let report = match cli.share {
        Some(share) => {
            step::pin_to_nth(share.0);
            Ok(part(&cli, &chosen, table, share))
        }
        None => whole(&cli, &chosen, ptrace, &table),
    };
    match report {
        Ok(report) if cli.share.is_some() => {
            println!("{}", serde_json::to_string(&report).expect("texts and numbers"));
            ExitCode::SUCCESS
        }
        Ok(report) => {
            print!("{}", report.table());
            if cli.json {
                println!("{}", report.json());
            }
            println!("{}", if report.is_right() { "all right" } else { "NOT RIGHT" });
            if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The modes that were asked for and can be had here.
fn modes(asked: &[String], ptrace: bool) -> Result<Vec<&'static Mode>, String> {
    let all = asked.iter().any(|name| name == "all");
    if let Some(unknown) = asked.iter().find(|name| *name != "all" && !MODES.iter().any(|m| m.name == **name))
    {
        let known: Vec<_> = MODES.iter().map(|mode| format!("{} ({})", mode.name, mode.about)).collect();
        return Err(format!("no mode is called `{unknown}`; there are {}", known.join(", ")));
    }
    let is_asked = |mode: &&Mode| all || asked.iter().any(|name| name == mode.name);
    // What is left of the usual modes where ptrace is denied.
    let instead = |mode: &&Mode| mode.name == trap::MODE && !ptrace;
    let chosen =
        MODES.iter().filter(|mode| is_asked(mode) && (ptrace || !mode.needs_ptrace) || instead(mode));
    Ok(chosen.collect())
}

/// Runs a part of the table in this process.
fn part(cli: &Cli, modes: &[&Mode], table: Vec<Operation>, (first, of): (usize, usize)) -> Report {
    let options = Options {
        quick: cli.quick,
        longest: cli.longest,
        steps: Options::default().steps,
        only: cli.op.clone(),
        share: (first, of),
        seed: cli.seed.expect("told by the process that divides the work"),
    };
    let asked = table.into_iter().filter(|operation| !(cli.quick && operation.minor)).enumerate();
    let mut mine: Vec<Operation> =
        asked.filter(|(at, _)| at % of == first).map(|(_, operation)| operation).collect();
    // Every process shows that it finds bugs.
    mine.extend(toys::all());
    let (together, alone): (Vec<&&Mode>, Vec<&&Mode>) =
        modes.iter().partition(|mode| all_states::MODES.contains(&mode.name));
    let together: Vec<&str> = together.iter().map(|mode| mode.name).collect();
    let mut reports = all_states::run(&options, &mine, &together);
    reports.extend(alone.iter().map(|mode| (mode.run)(&options, &mine)));
    reports.iter_mut().for_each(Report::check_planted);
    reports.into_iter().reduce(Report::joined).expect("there is a mode")
}

/// Divides the table among processes, one for each CPU, each of which steps its own victims.
fn whole(cli: &Cli, modes: &[&Mode], ptrace: bool, table: &[Operation]) -> Result<Report, String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let program = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    let names: Vec<_> = modes.iter().map(|mode| mode.name).collect();
    let seed = cli.seed.unwrap_or_else(crossproc_tests::fresh_seed);
    println!("seed {seed}");
    let start = |at: usize| {
        let mut command = Command::new(&program);
        command.args(["--op", &cli.op, "--mode", &names.join(",")]);
        command.args(["--longest", &cli.longest.to_string(), "--share", &format!("{at}/{cpus}")]);
        command.args(["--seed", &seed.to_string()]);
        command.args(cli.quick.then_some("--quick")).args((!ptrace).then_some("--no-ptrace"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().map_err(|e| format!("starting a process: {e}"))
    };
    let processes: Vec<_> = (0..cpus).map(start).collect::<Result<_, _>>()?;
    let result = |process: Child| {
        let output = process.wait_with_output().map_err(|e| format!("waiting for a process: {e}"))?;
        serde_json::from_slice(&output.stdout)
            .map_err(|e| format!("a process ended ({}) without a report: {e}", output.status))
    };
    let reports: Vec<Report> = processes.into_iter().map(result).collect::<Result<_, String>>()?;
    let mut all = reports.into_iter().reduce(Report::joined).ok_or("there was no process")?;
    if !ptrace {
        all.not_run.push("modes that need ptrace: it is denied here".to_owned());
    }
    let minor = table.iter().filter(|operation| cli.quick && operation.minor).count();
    if minor > 0 {
        all.not_run
            .push(format!("{minor} operations that hardly differ from others, or take long: a quick run"));
    }
    // As the table has them; the planted bugs last.
    let order: Vec<_> = table.iter().map(Operation::title).collect();
    all.rows.sort_by_key(|row| order.iter().position(|title| *title == row.operation).unwrap_or(usize::MAX));
    Ok(all)
}
