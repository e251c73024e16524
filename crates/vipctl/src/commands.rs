//! What each command does.

use std::pin::pin;

use futures::StreamExt;
use vip_client::{Client, Update, VipName, WatchEvent, WatchOptions};

use crate::args::{Args, Command, Vip};
use crate::output::{ChangeLine, Output, WatchLine};

pub(crate) async fn run(args: &Args, client: &Client) -> anyhow::Result<()> {
    let out = Output { json: args.json };
    match &args.command {
        Command::Status => out.status(&client.status(args.consistency).await?),
        Command::Vip(command) => vip(args, client, out, command).await,
        Command::Watch { names } => watch(args, client, out, names).await,
    }
}

async fn vip(args: &Args, client: &Client, out: Output, command: &Vip) -> anyhow::Result<()> {
    match command {
        Vip::List => {
            let (header, vips) = client.list(args.consistency).await?;
            out.vips(&header, &vips)
        }
        Vip::Get { name } => {
            let (header, vip) = client.get(name, args.consistency).await?;
            out.vip(&header, &vip)
        }
        Vip::Add { name, address, interface } => {
            let done = client.declare(address.spec(name.clone(), interface.clone())).await?;
            let text = if done.changed { "added" } else { "was declared so already" };
            out.change(&ChangeLine::new(name, &done), text)
        }
        Vip::Rm { name } => {
            let done = client.delete(name).await?;
            let text = if done.changed { "deleted" } else { "was not there" };
            out.change(&ChangeLine::new(name, &done), text)
        }
    }
}

async fn watch(args: &Args, client: &Client, out: Output, names: &[VipName]) -> anyhow::Result<()> {
    let options = WatchOptions { names: names.to_vec(), consistency: args.consistency, ..WatchOptions::default() };
    let mut updates = pin!(client.watch(options).await?);
    out.watch_head()?;
    while let Some(update) = updates.next().await {
        match update? {
            Update::Event { event: WatchEvent::Progress, .. } => {}
            Update::Event { header, event } => out.watch(&WatchLine { header: &header, event: &event })?,
            Update::Interrupted { reason } => out.note(&format!("interrupted, going on: {reason}"))?,
        }
    }
    Ok(())
}
