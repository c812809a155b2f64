//! Which tests hold which line of `docs/semantics.md`. A line that is new or said differently at its beginning needs its entry here.

/// How a line begins, and the tests that hold it.
pub const HELD: &[(&str, &[&str])] = &[
    (
        "The mount is a POSIX filesystem for one host.",
        &[
            "pjdfstest_finds_nothing_that_ext4_does_better",
            "random_calls_have_the_same_answers_as_on_the_host",
            "stress_ng_verifies_the_filesystem_class",
        ],
    ),
    (
        "| a file or directory that `dfs restore` brings back",
        &[
            "every_version_of_a_file_comes_back",
            "a_removed_tree_comes_back_as_it_was",
            "an_open_file_is_in_the_way_and_the_rest_comes_back",
        ],
    ),
    (
        "| a file that is open while another device",
        &[
            "a_file_held_open_for_writing_keeps_nothing_from_being_taken_in",
            "a_handle_goes_on_in_the_version_that_it_wrote",
            "a_database_and_a_mapping_held_open_mix_with_nothing",
            "files_held_open_through_a_storm_keep_what_is_written_to_them",
        ],
    ),
    (
        "| `user.dfs.replicas`, `user.dfs.pinned`",
        &[
            "a_directory_may_want_more_copies_or_fewer",
            "what_is_pinned_stays_and_comes_back",
        ],
    ),
    (
        "| `user.dfs.state` |",
        &["what_is_pinned_stays_and_comes_back", "where_content_is"],
    ),
    (
        "| `fsync` with `-o fsync=replicas`",
        &["fsync_waits_for_replicas_when_told_to"],
    ),
    (
        "The size of a file is that of the version",
        &[
            "a_remount_knows_the_sizes_without_reading_a_manifest",
            "a_manifest_changed_behind_the_mount_is_read_anew",
        ],
    ),
    (
        "also [between mounts](store.md#the-sizes-of-files)",
        &["what_was_written_by_another_just_now_is_not_remembered"],
    ),
    (
        "What replaces a `.f` or writes it is therefore always seen",
        &["a_manifest_changed_behind_the_mount_is_read_anew"],
    ),
    (
        "| `write` | may lose it",
        &[
            "a_file_killed_while_being_rewritten_is_one_of_its_versions",
            "the_volume_is_a_map_of_names_to_bytes",
        ],
    ),
    (
        "| `close`, of any descriptor",
        &[
            "a_kill_right_after_the_last_close_loses_nothing",
            "what_was_synced_survives_and_the_rest_is_whole_or_old",
        ],
    ),
    (
        "| `fsync`, `fdatasync`",
        &[
            "a_file_synced_but_not_closed_survives_a_kill",
            "what_was_synced_survives_and_the_rest_is_whole_or_old",
            "sqlite_loses_no_commit_when_the_daemon_is_killed",
        ],
    ),
    (
        "| `fsync` of a directory",
        &["what_was_synced_survives_and_the_rest_is_whole_or_old"],
    ),
    (
        "| `create`, `mkdir`, `rename`",
        &["names_and_attributes_outlive_the_daemon_at_once"],
    ),
    ("| `umount` (helper)", &["umount_drains_what_is_still_open"]),
    (
        "`O_SYNC` and `O_DSYNC`",
        &[
            "synchronous_writes_are_kept_without_a_close",
            "a_mount_with_sync_keeps_every_write",
            "a_mount_with_dirsync_syncs_every_directory_it_changes",
        ],
    ),
    (
        "Writes through a shared memory mapping",
        &["a_map_is_kept_by_msync_and_by_the_last_close_after_it"],
    ),
    (
        "After a crash a file holds",
        &[
            "kills_at_random_moments",
            "power_cuts_on_ext4",
            "power_cuts_on_xfs",
            "the_volume_is_a_map_of_names_to_bytes",
        ],
    ),
    (
        "kernel hands them over:",
        &[
            "kills_at_random_moments",
            "power_cuts_on_ext4",
            "names_are_in_a_state_that_was_and_not_before_the_last_that_was_synced",
        ],
    ),
    (
        "| the host's call for an operation",
        &["a_call_that_fails_is_reported_and_nothing_is_lost"],
    ),
    (
        "| storing what was written: no space",
        &[
            "a_full_disk_under_the_state",
            "a_call_that_fails_is_reported_and_nothing_is_lost",
        ],
    ),
    (
        "| the sync of a `.f` or of the folder",
        &["a_failed_fsync_is_told_once_to_each_descriptor_and_makes_the_next_one_write_again"],
    ),
    (
        "| the sync of the store",
        &["a_failure_of_every_call_is_reported_and_nothing_is_lost"],
    ),
    (
        "| `open`, `creat`",
        &[
            "a_running_program_cannot_be_cut",
            "records_appended_by_several_processes_stay_whole",
            "direct_buffered_and_mapped_see_the_same_bytes",
            "what_cannot_be_had_says_so",
        ],
    ),
    (
        "| `read`",
        &[
            "a_pulled_cable_is_an_error_in_time_and_heals",
            "fsx_finds_every_byte_where_it_was_put",
        ],
    ),
    (
        "| `write` | buffered here",
        &[
            "a_large_file_needs_little_memory",
            "random_writes_are_what_a_plain_file_would_hold",
        ],
    ),
    (
        "| `truncate`, `ftruncate`",
        &["cutting_and_growing_leave_zeros_and_never_old_bytes"],
    ),
    (
        "| `fallocate`",
        &["fallocate_grows_punches_and_zeroes_and_refuses_the_rest"],
    ),
    ("| `lseek`", &["holes_are_told_and_never_hide_data"]),
    ("| `copy_file_range`", &["a_copy_names_the_same_blocks"]),
    (
        "| `rename`",
        &[
            "rename_has_its_flags",
            "random_calls_have_the_same_answers_as_on_the_host",
        ],
    ),
    (
        "| `link`, `symlink`, `mknod`",
        &[
            "a_file_has_as_many_names_as_the_host_allows",
            "names_are_as_long_as_the_page_says",
            "paths_are_as_long_as_linux_has_them_and_trees_deeper_still",
        ],
    ),
    (
        "| `unlink` | the blocks go later",
        &["blocks_that_nothing_refers_to_are_collected_and_the_others_are_not"],
    ),
    (
        "| `unlink` of an open file",
        &[
            "an_open_file_without_a_name_lives_until_it_is_closed",
            "an_open_file_lives_on_without_a_name",
        ],
    ),
    (
        "| `rmdir`, `unlink` or replacing",
        &[
            "what_was_removed_goes_on_for_those_who_hold_it",
            "rename_has_its_flags",
        ],
    ),
    (
        "| `mknod`, sockets, pipes",
        &["pipes_sockets_and_devices_work_through_their_names"],
    ),
    (
        "| times",
        &[
            "times_are_kept_to_the_nanosecond_and_change_when_they_should",
            "times_set_by_hand_outlive_the_write_back",
        ],
    ),
    ("| last access", &["the_last_access_is_noted_as_the_mount_says"]),
    (
        "| `chmod`, `chown`, `utimens`",
        &["pjdfstest_finds_nothing_that_ext4_does_better"],
    ),
    (
        "| extended attributes, POSIX ACLs",
        &["extended_attributes_in_every_namespace"],
    ),
    (
        "| `flock`, `fcntl` locks",
        &[
            "locks_hold_between_processes_until_they_are_given_back",
            "two_writers_of_one_image_are_kept_apart_by_its_locks",
        ],
    ),
    (
        "| `mmap`",
        &[
            "a_shared_map_is_the_file",
            "fio_verifies_random_writes_of_four_jobs",
        ],
    ),
    ("| `statfs`", &["statfs_tells_what_the_disk_under_the_folder_has"]),
    ("| `ioctl`", &["what_cannot_be_had_says_so"]),
    (
        "| `.dfs/snapshots/TIME`",
        &[
            "what_was_is_read_whole_through_the_mount",
            "nothing_of_what_was_can_be_changed",
            "a_large_directory_is_listed_whole",
            "what_is_not_kept_any_more_is_gone_or_right_never_wrong",
            "what_was_is_read_from_the_other_computer",
        ],
    ),
    (
        "| `.dfs` in the root",
        &[
            "the_marker_is_a_virtual_folder_in_the_mount",
            "dfs_shows_its_status_without_being_listed",
        ],
    ),
    (
        "| listing a directory",
        &[
            "a_listing_neither_loses_nor_repeats_while_the_directory_changes",
            "a_position_in_a_directory_is_found_again",
        ],
    ),
    (
        "Permissions are checked by the kernel",
        &[
            "pjdfstest_finds_nothing_that_ext4_does_better",
            "owners_can_be_shown_as_somebody",
        ],
    ),
    ("`-o uid=`, `-o gid=`", &["owners_can_be_shown_as_somebody"]),
    (
        "Set-id programs and device nodes",
        &[
            "set_id_programs_need_the_option_suid",
            "pipes_sockets_and_devices_work_through_their_names",
        ],
    ),
    (
        "Names, absent names and attributes",
        &[
            "changes_behind_the_mount_are_seen_soon",
            "names_and_attributes_are_believed_as_long_as_asked_for",
        ],
    ),
    (
        "A file's pages stay cached",
        &["changes_behind_the_mount_are_seen_soon"],
    ),
    (
        "Symbolic links are cached",
        &[
            "changes_behind_the_mount_are_seen_soon",
            "a_mount_that_lets_the_kernel_collect_writes_keeps_them_as_well",
        ],
    ),
    ("- NFS export", &["what_cannot_be_had_says_so"]),
    ("- `O_TMPFILE`", &["what_cannot_be_had_says_so"]),
    (
        "- Interrupting a read",
        &["a_pulled_cable_is_an_error_in_time_and_heals"],
    ),
    (
        "- Notification (inotify)",
        &[
            "changes_behind_the_mount_are_seen_soon",
            "who_watches_a_file_is_told_that_another_version_took_its_place",
        ],
    ),
    ("- Swap files", &["what_cannot_be_had_says_so"]),
    (
        "`mount.dfs` returns once",
        &[
            "a_second_mount_is_refused_and_says_why",
            "a_dead_mount_is_replaced",
        ],
    ),
    (
        "`umount` goes through",
        &[
            "umount_drains_what_is_still_open",
            "umount_of_the_system_ends_the_daemon_too",
            "an_unmount_without_helper_loses_nothing",
        ],
    ),
    (
        "A mount that is in use",
        &["a_mount_in_use_stays_and_a_lazy_unmount_waits_for_the_last_user"],
    ),
    (
        "`-o remount`",
        &[
            "remounting_changes_the_flags_of_a_mount",
            "remounting_changes_flags",
        ],
    ),
    (
        "What two devices do without knowing of each other",
        &[
            "random_changes_on_three_devices_end_in_one_tree",
            "what_both_changed_is_there_twice_and_everything_else_once",
        ],
    ),
    (
        "| writes to a file | writes something else",
        &["edit_and_edit_keep_both"],
    ),
    (
        "| writes to a file | writes the same",
        &["edit_and_edit_keep_both"],
    ),
    (
        "| writes to a file | moves it",
        &["a_write_meets_everything_else_that_is_done_to_its_file"],
    ),
    (
        "| writes to a file | deletes it",
        &[
            "a_write_meets_everything_else_that_is_done_to_its_file",
            "edit_beats_delete_and_its_directory_reappears",
        ],
    ),
    (
        "| writes in a directory | moves",
        &["edit_and_rename_meet_also_in_a_directory_that_moved"],
    ),
    (
        "| moves a file or directory | moves",
        &["two_renames_end_in_one_place"],
    ),
    (
        "| moves a file | deletes",
        &["a_delete_gives_way_to_all_but_attributes"],
    ),
    (
        "| moves a file | changes",
        &["a_move_keeps_what_else_is_done_to_its_file"],
    ),
    (
        "| deletes a file | changes",
        &["a_delete_gives_way_to_all_but_attributes"],
    ),
    (
        "| deletes a file | gives",
        &["a_delete_gives_way_to_all_but_attributes"],
    ),
    (
        "| deletes something |",
        &["a_delete_gives_way_to_all_but_attributes"],
    ),
    (
        "| changes attributes |",
        &["fields_meet_and_nobody_gets_a_right_that_one_took"],
    ),
    (
        "| changes an attribute |",
        &["fields_meet_and_nobody_gets_a_right_that_one_took"],
    ),
    (
        "| gives a file another name |",
        &["names_of_one_file_come_and_go_one_by_one"],
    ),
    (
        "| takes one name from a file | takes",
        &["names_of_one_file_come_and_go_one_by_one"],
    ),
    (
        "| takes one name from a file | deletes",
        &["names_of_one_file_come_and_go_one_by_one"],
    ),
    ("| makes a file | makes a file", &["one_name_for_two"]),
    ("| makes a file | makes the same", &["one_name_for_two"]),
    ("| makes a file | makes a directory", &["one_name_for_two"]),
    ("| makes a directory |", &["one_name_for_two"]),
    (
        "| makes something in a directory",
        &[
            "a_directory_that_goes_comes_back_for_what_is_put_into_it",
            "edit_beats_delete_and_its_directory_reappears",
        ],
    ),
    (
        "| changes a directory's attributes",
        &[
            "a_directory_that_goes_comes_back_for_what_is_put_into_it",
            "edit_beats_delete_and_its_directory_reappears",
        ],
    ),
    (
        "| moves a directory into",
        &["directories_moved_into_each_other_stay_outside"],
    ),
    ("| gives a name |", &["names_that_look_alike_are_two"]),
];

/// Complaints: lines of the page without an entry, entries without a line, tests that are not there. Headings and the heads of tables say
/// nothing by themselves.
pub fn unheld(page: &str, held: &[(&str, &[&str])], tests: &str) -> Vec<String> {
    let lines: Vec<&str> = page.lines().collect();
    let says = |at: usize| {
        let is_rule = |line: &&str| line.starts_with("|---");
        let line = lines[at];
        !line.is_empty()
            && !line.starts_with('#')
            && !is_rule(&line)
            && !lines.get(at + 1).is_some_and(is_rule)
    };
    let saying: Vec<&str> = (0..lines.len())
        .filter(|at| says(*at))
        .map(|at| lines[at])
        .collect();
    let mut bad = Vec::new();
    for line in &saying {
        let entries = held.iter().filter(|(start, _)| is_start(line, start)).count();
        if entries != 1 {
            bad.push(format!(
                "docs/semantics.md: {entries} entries of tests/tidy/semantics.rs hold: {line}"
            ));
        }
    }
    for (start, names) in held {
        if !saying.iter().any(|line| is_start(line, start)) {
            bad.push(format!(
                "tests/tidy/semantics.rs: no line of docs/semantics.md begins with: {start}"
            ));
        }
        if names.is_empty() {
            bad.push(format!("tests/tidy/semantics.rs: no test holds: {start}"));
        }
        for name in names
            .iter()
            .filter(|name| !tests.contains(&format!("fn {name}(")))
        {
            bad.push(format!("tests/tidy/semantics.rs: there is no test {name}"));
        }
    }
    bad
}

/// Whole words only: `read` begins no line about `readlink`.
fn is_start(line: &str, start: &str) -> bool {
    line.strip_prefix(start)
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_'))
}
