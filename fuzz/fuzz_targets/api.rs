//! Messages of the public API, of any kind (the first byte says which): checked, or refused with the field. What was let
//! in reads as the same when it comes back.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use vip_api::{FieldError, Header, Status, Vip, WatchEvent, convert, v1};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        b'd' => take(bytes, |request: v1::DeclareRequest| {
            let spec = convert::declared(request.spec)?;
            assert_eq!(spec.clone().validate().as_ref(), Ok(&spec), "let in without being valid");
            let again = convert::declared(Some(sent(&v1::VipSpec::from(spec.clone()))))?;
            assert_eq!(again, spec);
            Ok(())
        }),
        b'x' => take(bytes, |request: v1::DeleteRequest| convert::vip_name("name", request.name).map(drop)),
        b'g' => take(bytes, |request: v1::GetRequest| {
            convert::vip_name("name", request.name)?;
            convert::consistency(request.consistency).map(drop)
        }),
        b'l' => take(bytes, |request: v1::ListRequest| convert::consistency(request.consistency).map(drop)),
        b's' => take(bytes, |request: v1::StatusRequest| convert::consistency(request.consistency).map(drop)),
        b'w' => take(bytes, |request: v1::WatchRequest| {
            convert::consistency(request.consistency)?;
            if let Some(interval) = request.progress_interval {
                let interval = convert::duration("progress_interval", interval)?;
                let again = sent(&convert::proto_duration(interval));
                assert_eq!(convert::duration("progress_interval", again)?, interval);
            }
            for name in request.names {
                convert::vip_name("names", name)?;
            }
            Ok(())
        }),
        // What clients get.
        b'D' => take(bytes, |answer: v1::DeclareResponse| same_header(answer.header)),
        b'X' => take(bytes, |answer: v1::DeleteResponse| same_header(answer.header)),
        b'G' => take(bytes, |answer: v1::GetResponse| {
            same_header(answer.header)?;
            answer.vip.map_or(Ok(()), same_vip)
        }),
        b'L' => take(bytes, |answer: v1::ListResponse| {
            same_header(answer.header)?;
            answer.vips.into_iter().try_for_each(same_vip)
        }),
        b'S' => take(bytes, |answer: v1::StatusResponse| {
            let status = Status::try_from(answer)?;
            assert_eq!(Status::try_from(sent(&v1::StatusResponse::from(status.clone())))?, status);
            json(&status);
            Ok(())
        }),
        b'W' => take(bytes, |answer: v1::WatchResponse| {
            same_header(answer.header)?;
            for event in answer.events {
                let Some(event) = convert::watch_event(event)? else { continue };
                let again = convert::watch_event(sent(&v1::WatchEvent::from(event.clone())))?;
                assert_eq!(again.as_ref(), Some(&event));
                if let WatchEvent::Put(vip) = event {
                    json(&vip);
                }
            }
            Ok(())
        }),
        _ => {}
    }
});

fn take<M: Message + Default>(bytes: &[u8], check: impl FnOnce(M) -> Result<(), FieldError>) {
    let Ok(message) = M::decode(bytes) else { return };
    if let Err(error) = check(message) {
        assert!(!error.field.is_empty() && !error.reason.is_empty(), "{error:?}");
        let _ = error.to_string();
    }
}

/// A message after a journey.
fn sent<M: Message + Default + PartialEq + Debug>(message: &M) -> M {
    let back = M::decode(message.encode_to_vec().as_slice()).expect("our own encoding");
    assert_eq!(&back, message);
    back
}

fn same_header(header: Option<v1::ResponseHeader>) -> Result<(), FieldError> {
    let header: Header = convert::header(header)?;
    assert_eq!(convert::header(Some(sent(&header.clone().into())))?, header);
    json(&header);
    Ok(())
}

fn same_vip(vip: v1::Vip) -> Result<(), FieldError> {
    let vip = Vip::try_from(vip)?;
    assert_eq!(Vip::try_from(sent(&v1::Vip::from(vip.clone())))?, vip);
    json(&vip);
    Ok(())
}

/// As `vipctl --json` prints it.
fn json(value: &impl serde::Serialize) {
    assert!(serde_json::to_string(value).is_ok(), "what vipctl prints");
}
