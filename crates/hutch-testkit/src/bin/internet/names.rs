//! A name server (RFC 1035) as far as a resolver's questions for addresses need one.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;

use crate::Failure;
use crate::world::World;

const ADDRESS: u16 = 1;
const ADDRESS_6: u16 = 28;
const NO_SUCH_NAME: u8 = 3;

/// Answers on 127.0.0.53 until the program ends.
pub(crate) async fn serve(world: &Arc<World>) -> Result<(), Failure> {
    let socket = UdpSocket::bind("127.0.0.53:53").await?;
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            if let Some(answer) = answer(&world, &buffer[..length]) {
                // A client that is gone does not wait for the answer.
                let _unheard = socket.send_to(&answer, client).await;
            }
        }
    });
    Ok(())
}

fn answer(world: &World, query: &[u8]) -> Option<Vec<u8>> {
    let (name, kind, question_end) = question(query)?;
    world.asked(name.clone());
    let found = world.resolve(&name, kind == ADDRESS_6);
    let records: Vec<Vec<u8>> = found
        .iter()
        .flatten()
        .filter_map(|address| match (kind, address) {
            (ADDRESS, IpAddr::V4(address)) => Some(address.octets().to_vec()),
            (ADDRESS_6, IpAddr::V6(address)) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let code = if found.is_none() { NO_SUCH_NAME } else { 0 };
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1]);
    answer.extend(u16::try_from(records.len()).ok()?.to_be_bytes());
    answer.extend([0, 0, 0, 0]);
    answer.extend(query.get(12..question_end)?);
    for record in records {
        // The question's name, its kind, class IN, and a time to live of nothing.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 0]);
        answer.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
        answer.extend(record);
    }
    Some(answer)
}

/// The name and kind that are asked for, and where the question ends.
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = query.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += length;
    }
    let kind = query.get(at..at + 2)?;
    Some((labels.join("."), u16::from_be_bytes([kind[0], kind[1]]), at + 4))
}
