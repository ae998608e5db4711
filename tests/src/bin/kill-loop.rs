//! Kills the daemon under load as often as it is told, and prints the books:
//! what `scripts/soak` runs. Its exit status says whether they are clean.

use ksi_tests::kills::{Plan, carry_out};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]
fn main() -> std::process::ExitCode {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (Some(Ok(kills)), Some(Ok(seed)), None) = (numbers.next(), numbers.next(), numbers.next()) else {
        eprintln!("usage: kill-loop KILLS SEED");
        return 2.into();
    };
    let Ok(kills) = usize::try_from(kills) else { return 2.into() };
    let tally = carry_out(Plan { kills, births: kills / 10, clients: 3, burst: 40, seed });
    println!("{tally}");
    u8::from(!tally.is_clean()).into()
}
