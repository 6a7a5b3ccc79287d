//! The agent's public API (Varlink), spoken by hand: a call's time without the start of a program.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use steer_tests::Lab;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the agent of a laboratory.
#[derive(Debug)]
pub(crate) struct Api(BufReader<UnixStream>);

impl Api {
    /// Connects.
    pub(crate) fn connect(lab: &Lab) -> Result<Self> {
        let stream = lab
            .host()
            .run(|| UnixStream::connect("/run/steer/agent.sock").context("connect to the agent"))?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("limit the wait")?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Calls `method` of the interface and returns its parameters.
    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        let method = format!("net.steer.Agent.{method}");
        let mut message = serde_json::to_vec(&json!({"method": method, "parameters": parameters}))
            .context("write a call")?;
        message.push(0);
        self.0
            .get_mut()
            .write_all(&message)
            .context("send a call")?;
        let mut answer = Vec::new();
        self.0
            .read_until(0, &mut answer)
            .context("wait for an answer")?;
        answer.pop();
        let mut answer: Value = serde_json::from_slice(&answer).context("read an answer")?;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error}: {answer}");
        }
        Ok(answer["parameters"].take())
    }
}
