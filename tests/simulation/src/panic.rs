//! A panic in a run is a finding like any other.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// What the panic of the run in this thread said; nothing outside of a run.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Does `work`. Where it panics, says with what message and where, and nothing is printed.
pub(crate) fn caught(work: impl FnOnce()) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            let in_run = SAID.with_borrow_mut(|said| {
                said.as_mut().map(|said| {
                    let payload = info.payload();
                    let text = payload.downcast_ref::<String>().map(String::as_str);
                    let what = text.or_else(|| payload.downcast_ref::<&str>().copied());
                    let what = what.unwrap_or("nothing that can be read");
                    let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
                    *said = format!("panic{}: {what}", place.unwrap_or_default());
                })
            });
            if in_run.is_none() {
                before(info);
            }
        }));
    });
    SAID.set(Some("panic".to_owned()));
    // What the run leaves behind is only reported.
    let result = catch_unwind(AssertUnwindSafe(work));
    let said = SAID.take();
    result.is_err().then(|| said.unwrap_or_default())
}
