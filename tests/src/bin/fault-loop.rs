//! Has a plugin fail as often as it is told, in every way in turn, and prints
//! what came of it: what `scripts/soak` runs. Its exit status says whether
//! anything broke, or came back late.

use ksi_tests::faults::{BACK, carry_out};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]
fn main() -> std::process::ExitCode {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let (Some(Ok(faults)), None) = (numbers.next(), numbers.next()) else {
        eprintln!("usage: fault-loop FAULTS");
        return 2.into();
    };
    let tally = carry_out(faults);
    println!("{tally}");
    u8::from(!tally.broken.is_empty() || tally.quantile(0.99) > BACK || !tally.late().is_empty()).into()
}
