//! All plugins of the project in one proxy.

use tidegate_tests::rounds;

#[test]
fn six_policies_hold_while_four_of_them_change() {
    let ledger = rounds::changes(24, None, 7);
    let (changed, pulled) = (ledger.done("changes in effect"), ledger.done("images pulled whole"));
    assert!(ledger.close(), "something was lost");
    assert_eq!(changed, 24);
    assert!(pulled > 24, "{pulled} pulls");
}
