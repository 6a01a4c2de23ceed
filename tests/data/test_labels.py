import hashlib

from tubevit.data.labels import label_hash


def test_the_hash_is_that_of_the_ordered_names():
    assert label_hash(("a", "b")) == hashlib.sha256(b"a\nb").hexdigest()[:16]
    assert len({label_hash(names) for names in (("a", "b"), ("b", "a"), ("a",), ("a", "b", "c"))}) == 4
