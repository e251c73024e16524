use super::*;
use crate::bench::about::About;

fn spread(p50: f64, max: f64) -> Option<Spread> {
    Some(Spread { p50, p95: max, p99: max, max })
}

fn summary(scenario: Fault, manager: Manager) -> Summary {
    Summary {
        scenario,
        manager,
        vips: 2,
        trials: 3,
        outage_ms: spread(20.0, 30.0),
        outage6_ms: spread(21.0, 31.0),
        after_heal_ms: spread(0.0, 2.0),
        new_owner_ms: spread(400.0, 500.0),
        last_vip_ms: spread(410.0, 510.0),
        prober_pause_ms: spread(2.0, 9.0),
        budget_ms: manager.profile().map(|_| 30.5),
        max_overlap_ms: 0.0,
        overlap_ms: spread(0.0, 0.0),
        overlaps_until_healed: 0,
        unreached_at_end: 0,
        overlaps: 0,
        unrecovered: 0,
    }
}

fn report() -> BenchReport {
    let peer = Summary {
        outage_ms: spread(300.0, 310.0),
        after_heal_ms: spread(4.0, 4999.0),
        unreached_at_end: 1,
        max_overlap_ms: 600.0,
        overlaps: 3,
        overlaps_until_healed: 2,
        ..summary(Fault::Kill, Manager::Keepalived1s)
    };
    BenchReport {
        about: About {
            date: "2026-01-31".to_owned(),
            processor: "Some CPU".to_owned(),
            processors: 2,
            memory_gib: 24,
            kernel: "6.1.0".to_owned(),
            distribution: "Debian GNU/Linux 12 (bookworm)".to_owned(),
            versions: vec!["vipd 0.1.0 (commit abc)".to_owned(), "Keepalived v2.2.7".to_owned()],
            stolen_percent: Some(1.25),
            trials: 3,
            many_trials: 2,
        },
        faults: vec![
            summary(Fault::Kill, Manager::VipdDefault),
            summary(Fault::Kill, Manager::VipdFast),
            Summary { outage_ms: spread(300.0, 310.0), ..summary(Fault::Kill, Manager::Keepalived10ms) },
            peer,
            summary(Fault::Reboot, Manager::VipdDefault),
        ],
        many: vec![summary(Fault::Stop, Manager::VipdDefault)],
        steady: Vec::new(),
    }
}

#[test]
fn a_row_says_what_was_measured() {
    let text = render(&report());
    for line in [
        "| kill | keepalived-10ms | 300.0 | 15 × | 310.0 | 400.0 | 1.0 × | 2.0 | 0.0 | 0 of 3 |",
        "2026-01-31: Some CPU with 2 processors, 24 GiB, Debian GNU/Linux 12 (bookworm), Linux 6.1.0. \
         vipd 0.1.0 (commit abc). Keepalived v2.2.7. Of the processors' time 1.2 % was stolen by the machine's own host.",
        "| default | kill | 3 | 20.0 | 30.0 | 30.0 | 30.0 | 31.0 | ≤ 30 | **no** | 2.0 | 400.0 | 2.0 | 9.0 | 0.0 |",
        "| kill | keepalived-1s | 300.0 | - | 310.0 | 400.0 | 1.0 × | ≥ 4999.0 | **≥ 600.0** | 3 of 3 |",
        "| stop | vipd-default | 400.0 | 410.0 | 1.0 × | 510.0 | 0.0 | 3 of 3 |",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
    assert!(!text.contains("Steady"), "a part that was not measured is not shown");
    assert_eq!(text.matches("reboot").count(), 1, "a reboot is vipd's alone");
}

#[test]
fn every_row_of_a_table_has_its_columns() {
    let text = render(&report());
    for block in text.split("\n\n").filter(|block| block.starts_with('|')) {
        let columns: Vec<usize> = block.lines().map(|line| line.matches('|').count()).collect();
        assert!(columns.len() > 2 && columns.iter().all(|&count| count == columns[0]), "{block}");
    }
}

#[test]
fn nothing_beside_the_marks_is_touched() {
    let page = format!("# Page\n\nProse.\n\n{BEGIN}\nold\n{END}\n\nMore prose.\n");
    let once = replace(&page, "new\n").expect("marks");
    assert_eq!(once, format!("# Page\n\nProse.\n\n{BEGIN}\n\nnew\n\n{END}\n\nMore prose.\n"));
    assert_eq!(replace(&once, "new").expect("marks"), once, "and again");
}

#[test]
fn a_page_without_its_marks_is_left_alone() {
    for page in ["no marks".to_owned(), BEGIN.to_owned(), format!("{END}{BEGIN}"), format!("{BEGIN}{END}{BEGIN}{END}")]
    {
        assert!(replace(&page, "new").is_err(), "{page}");
    }
}

#[test]
fn the_result_of_a_run_can_be_read_again() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let report = report();
    let line = serde_json::to_string(&crate::bench::BenchLine { bench: report.clone() }).expect("JSON");
    fs::write(file.path(), format!("{{\"scenario\":\"kill\"}}\n{line}\n")).expect("write");
    assert_eq!(BenchReport::read(file.path()).expect("a result"), report);
    fs::write(file.path(), "{\"scenario\":\"kill\"}\n").expect("write");
    assert!(BenchReport::read(file.path()).is_err());
}

#[test]
fn only_vipd_can_fail() {
    let mut report = report();
    assert!(report.passed(), "keepalived promised nothing");
    report.faults[1].overlaps = 1;
    assert!(!report.passed());
}
