//! Sends traffic in every way a program can, one operation at a time, and reports each as a JSON line.
//!
//! `steer-probe KIND FAMILY` opens a socket, reports it, and then performs one operation for every line
//! of its standard input.

mod control;
mod hand;
mod hold;
mod operation;
mod probe;
mod repeat;
mod ring;
mod socket;
mod transfer;
mod wire;

use std::io::BufRead;
use std::process::ExitCode;
use std::sync::mpsc;

use anyhow::{Context, Result};

use crate::probe::Probe;

const HELP: &str = "\
usage: steer-probe KIND FAMILY

KIND    tcp | mptcp | sctp | udp | ping | raw (ICMP) | raw-udp (UDP header by hand)
        | header (IP header by hand) | packet (AF_PACKET)
FAMILY  4 | 6 | mapped (AF_INET6 with v4-mapped addresses)

Operations, one a line on standard input; addresses as ADDRESS, ADDRESS:PORT, [ADDRESS%INTERFACE]:PORT:
  open KIND FAMILY      close the socket and open another
  take NAME             close the socket and wait for another process to give one
  give NAME             hand the socket to the process that takes it, and keep it
  set KEY=VALUE         mark=N device=IF ifindex=IF unicast-if=IF pktinfo6=IF|ADDRESS broadcast=1
                        multicast-if=IF qdisc-bypass=1 freebind=1 no-port=1
                        tos=N tos4=N (of IPv4 packets of an IPv6 socket)
                        prefer=temporary|public segment=BYTES (of UDP_SEGMENT);
                        source=ADDRESS (header and packet),
                        timeout=MILLISECONDS, pause=MILLISECONDS (of flood and the like)
  bind ADDRESS | connect ADDRESS | listen
  send TOKEN [ADDRESS] [pktinfo=IF|ADDRESS] [mark=N]    send and wait for the answer
  post TOKEN [ADDRESS] [pktinfo=IF|ADDRESS] [mark=N]    send only
  many N ADDRESS        connect N further sockets, and keep them; `ended` counts those that have ended
  wait                  wait until something comes; an error that comes is the answer
  fast TOKEN ADDRESS    connect and send at once (MSG_FASTOPEN), and wait for the answer
  ring TOKEN [ADDRESS] [pktinfo=IF|ADDRESS] [mark=N]    post by io_uring
  serve                 take one connection or datagram and answer it
  flood TOKEN [ADDRESS] post TOKEN-1, TOKEN-2, .. every millisecond until the next line comes
  churn TOKEN ADDRESS   the same with a new socket, connect, send and answer each time
  sprout TOKEN ADDRESS  the same with a new socket each time, and no connect
  persist TOKEN ADDRESS the same with a socket that is connected, and with a new one after an error
  accept                wait for a connection, or the first datagram, and go on with its sender
  pump BYTES            send so many bytes of a text that never repeats; datagrams one after the other
  gulp BYTES            receive them; `tried` counts the right ones, `failed` is 1 if one was not
  hold                  have the kernel stop in the midst of sending by the socket, which is lost to the probe and
                        locked until `release`
  enter CGROUP          move this process into the cgroup directory CGROUP
  close                 close the socket
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, family] = arguments.as_slice() else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    match run(kind, family) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steer-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(kind: &str, family: &str) -> Result<()> {
    // Lines are read by a thread of their own, so that `flood` and `churn` notice the next one.
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut probe = Probe::new(lines);
    probe.perform(&format!("open {kind} {family}"))?;
    while let Some(line) = probe.next_line() {
        probe
            .perform(&line)
            .with_context(|| format!("operation {line:?}"))?;
    }
    Ok(())
}
